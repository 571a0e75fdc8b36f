"""Fairness, side by side: a LoRA on the census records of `adult`, against its base with the head
alone trained.

    python benchmarks/fairness.py [--data FOLDER] [--out FOLDER]

MiniLM-L6, records as sentences (sex and race are among them, as a user's own columns would be), 150
steps of 16. Trained on the first 4,400 records of the training file, of which Trimtab holds out a
tenth for validation; rates on the first 3,000 of the test file. Both files are in random order.
`trimtab tune`, then `trimtab eval` with slices, fairness and calibration, as a user would. Writes
results/fairness.json: what `eval --json` gives, and the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import record

HERE = Path(__file__).parent
ROWS = {"train": 4_400, "test": 3_000}
TUNE = "--model minilm --method lora --max-steps 150 --batch-size 16 --attention sdpa"
EVAL = "--slice sex --fairness sex --fairness race --positive >50K --calibration"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=None, help="keep data, run and page here")
    options = parser.parse_args()
    if options.out is not None:
        measure(options.data, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options.data, Path(folder))


def measure(data: Path, out: Path) -> None:
    made, run = out / "data", out / "run"
    prepare(data, made)
    if not (run / "report.html").exists():
        trimtab("tune", *TUNE.split(), "--data", str(made), "--out", str(run), "--json")
    page = ["--out", str(out / "page"), "--json"]
    found = json.loads(trimtab("eval", str(run), *EVAL.split(), *page))
    found["data"] = "adult"
    commands = [f"trimtab tune {TUNE} --data adult --out run", f"trimtab eval run {EVAL}"]
    record.write("fairness", {"commands": commands, "rows": ROWS, **found})
    print("\n".join(found["notes"]))


def prepare(data: Path, made: Path) -> None:
    """The records as sentences, of both files the first ones."""
    sys.path.insert(0, str(HERE / "tasks"))
    from prepare import adult

    adult(data / "adult", made)
    for split, rows in ROWS.items():
        file = made / f"{split}.csv"
        lines = file.read_text(encoding="utf8").splitlines(keepends=True)
        file.write_text("".join(lines[: rows + 1]), encoding="utf8")


def trimtab(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
