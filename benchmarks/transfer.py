"""Which adapter is the best start: what is predicted from a few batches, against the truth.

    python benchmarks/transfer.py [--data FOLDER] [--out FOLDER]

A library of four adapters of MiniLM-L6 (LoRA of rank 8, 60 steps of 16 on 1,500 rows each): movie
reviews, subjectivity, questions to a bank, spoken commands. For each of two new tasks with 160
rows to train on, the adapters of the others, and none, are ranked by `trimtab transfer`; then a run
of 20 steps begins at each of them, and its accuracy on 400 rows of the test is the truth. The
agreement is Spearman's rank correlation. Writes results/transfer.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
from scipy.stats import spearmanr

HERE = Path(__file__).parent
SOURCES = {
    "rotten_tomatoes": ("train.tsv", "test.tsv", "label"),
    "subjectivity": ("train.tsv", "test.tsv", "label"),
    "banking77": ("train.csv", "test.csv", "category"),
    "snips_intents": ("train.tsv", "validation.tsv", "label"),
}
TARGETS = ("snips_intents", "subjectivity")
MANY, FEW, TEST = 1_500, 160, 400
PINNED = "--model minilm --attention sdpa --products exact --replicas 1 --no-head-only --json"
LIBRARY = f"{PINNED} --max-steps 60 --batch-size 16 --rank 8 --skip-bad-rows"
TRUTH = f"{PINNED} --max-steps 20 --batch-size 16 --rank 8 --eval-every 20"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=None, help="keep data and runs here")
    options = parser.parse_args()
    if options.out is not None:
        measure(options.data, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options.data, Path(folder))


def measure(shared: Path, out: Path) -> None:
    for name in SOURCES:
        made(shared / name, out / "many" / name, name, MANY)
        tune(LIBRARY, out / "many" / name, out / "library" / name)
    found = {target: of_target(shared, out, target) for target in TARGETS}
    commands = [f"trimtab tune {LIBRARY}", f"trimtab tune {TRUTH}"]
    record.write("transfer", {"work": commands, "rows": [MANY, FEW, TEST], "targets": found})
    print(json.dumps(found, indent=1))


def of_target(shared: Path, out: Path, target: str) -> dict[str, Any]:
    """Starts from all adapters but the target's own: predicted and true."""
    data, others = out / "few" / target, out / "others" / target
    made(shared / target, data, target, FEW)
    others.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        link = others / name
        if name != target and not link.exists():
            link.symlink_to((out / "library" / name).resolve())
    told = trimtab("transfer", str(others), "--data", str(data), "--json")
    starts = {one["name"]: one for one in json.loads(told)}
    for name, one in starts.items():
        run = out / "truth" / target / name.replace(" ", "-")
        start = [] if one["folder"] is None else ["--start-from", one.pop("folder")]
        one["accuracy"] = tune(TRUTH, data, run, *start)["test"]
    truth = [one["accuracy"]["value"] for one in starts.values()]
    agreement = {
        key: float(spearmanr([one[key] for one in starts.values()], truth).statistic)
        for key in ("score", "probe")
    }
    return {"starts": starts, "spearman": agreement}


def made(source: Path, out: Path, name: str, rows: int) -> None:
    """Some rows of train, a tenth more for validation, and some of the test, drawn with a seed."""
    train, test, label = SOURCES[name]
    taken = draw(source / train, label, rows + rows // 10)
    out.mkdir(parents=True, exist_ok=True)
    parts = {"train": taken[:rows], "validation": taken[rows:]}
    for split, part in {**parts, "test": draw(source / test, label, TEST)}.items():
        with (out / f"{split}.csv").open("w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([("text", "label"), *part])


def draw(path: Path, label: str, rows: int) -> list[tuple[str, str]]:
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(newline="", encoding="utf8") as file:
        found = [(row["text"], row[label]) for row in csv.DictReader(file, **dialect)]
    random.Random(0).shuffle(found)
    return found[:rows]


def tune(flags: str, data: Path, run: Path, *more: str) -> Any:
    if not (run / "report.html").exists():
        trimtab("tune", *flags.split(), "--data", str(data), "--out", str(run), *more)
    return json.loads((run / "metrics.json").read_text(encoding="utf8"))


def trimtab(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
