"""`trimtab compare` on three real data sets, at a small stated budget, one command each.

    python benchmarks/compare.py [--shared ../shared] [--out runs/compare] [NAME …]

Five methods, full fine-tuning, the head alone and few-shot on MiniLM: two learning rates each, 60
steps of 16 examples (120 for tags), one seed. Of each data set fixed parts are taken, so that all
three take about half an hour of two cores; the reports stay in OUT/NAME, and what they found in
results/compare.json. A second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = ("lora", "bitfit", "ia3", "houlsby", "dora", "full", "head")
BUDGET = {"trials": 2, "seeds": 1}
RESULT = Path(__file__).parent / "results" / "compare.json"
_ROW = (
    *("method", "kind", "about", "lr", "test", "against", "trained", "bytes", "seconds"),
    *("peak_memory", "milliseconds", "tokens", "forgetting", "gap", "energy", "curve"),
)


@dataclass(frozen=True)
class Set:
    """One data set: how its parts are made, its task, and the rows of train."""

    make: Callable[[Path, Path], None]
    task: str
    sizes: str
    steps: int = 60


def rotten_tomatoes(source: Path, out: Path) -> None:
    """As it is, with the first 500 rows of validation."""
    for split in ("train", "validation", "test"):
        lines = list(_lines(source / f"{split}.tsv"))
        kept = lines[: 501 if split == "validation" else None]
        (out / f"{split}.tsv").write_text("".join(kept), encoding="utf8")


def banking77(source: Path, out: Path) -> None:
    """Every fifth row of test, whose rows are in order of their labels."""
    train, test = ([*_rows(source / f"{split}.csv")] for split in ("train", "test"))
    _write(out / "train.csv", train)
    _write(out / "test.csv", test[::5])


def wnut17(source: Path, out: Path) -> None:
    """The first 300 sentences of development, and 600 of test."""
    names = {"train": "wnut17train.conll", "validation": "emerging.dev.conll",
             "test": "emerging.test.annotated"}  # fmt: skip
    kept = {"train": None, "validation": 300, "test": 600}
    for split, name in names.items():
        sentences = (source / name).read_text(encoding="utf8").strip().split("\n\n")
        text = "\n\n".join(sentences[: kept[split]])
        (out / f"{split}.conll").write_text(text + "\n", encoding="utf8")


SETS = {
    "rotten_tomatoes": Set(rotten_tomatoes, "text-classification", "64,512"),
    "banking77": Set(banking77, "text-classification", "1000"),
    "wnut17": Set(wnut17, "token-classification", "1000", steps=120),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *SETS], metavar="NAME")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    if not options.shared.is_dir():
        sys.exit(f"{options.shared} is not here: the data that comparisons are proven with")
    kept = json.loads(RESULT.read_text(encoding="utf8")) if RESULT.exists() else {}
    for name in options.names or SETS:
        kept[name] = run(name, options.shared, options.out)
        ordered = {one: kept[one] for one in SETS if one in kept}
        RESULT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf8")


def run(name: str, shared: Path, out: Path) -> dict[str, Any]:
    """One command; what it found, without what only this machine's folders know."""
    one, data = SETS[name], out / "data" / name
    if not data.exists():
        data.mkdir(parents=True)
        one.make(shared / "data" / name, data)
    command = [
        *(sys.executable, "-m", "trimtab", "compare", "--model", "minilm", "--data", str(data)),
        *("--task", one.task, "--methods", ",".join(METHODS), "--no-baselines"),
        *(part for key, value in BUDGET.items() for part in (f"--{key}", str(value))),
        *("--steps", str(one.steps), "--sizes", one.sizes),
        *("--tune-arg", "batch_size=16", "--out", str(out / name)),
    ]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads((out / name / "compare.json").read_text(encoding="utf8"))
    rows = [{key: row[key] for key in _ROW} for row in found["rows"]]
    keys = ("task", "metric", "margin", "power", "intensity", "verdict", "failed",
            "few_shot_not_applicable", "hardware", "versions")  # fmt: skip
    return {
        "budget": {**BUDGET, "steps": one.steps, "batch_size": 16, "sizes": one.sizes},
        **{key: found[key] for key in keys},
        "rows": rows,
    }


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf8", newline="") as file:
        yield from file


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf8", newline="") as file:
        yield from csv.reader(file)


def _write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
