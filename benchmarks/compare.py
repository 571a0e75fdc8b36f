"""`trimtab compare` on three real data sets, at a small stated budget, one command each.

    python benchmarks/compare.py [--shared ../shared] [--out runs/compare] [NAME …]

Five methods, full fine-tuning, the head alone and few-shot on MiniLM: 40 steps of 16 examples (80
for tags), one seed; two learning rates each on the first set, each method's own on the others. Of
each data set a part is taken, the same one always: 150 examples of validation, about 300 of test,
256 or 500 rows of train. All three take about twenty minutes of two idle cores. The reports stay in
OUT/NAME, and what they found in results/compare.json. A second call goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compare import numbers
from trimtab.core.counts import size

METHODS = ("lora", "bitfit", "ia3", "houlsby", "dora", "full", "head")
RESULT = Path(__file__).parent / "results" / "compare.json"
PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
MARKS = "<!-- results -->\n", "<!-- /results -->\n"
BATCH = 16
_KEPT = (
    *("task", "metric", "margin", "power", "intensity", "verdict", "failed"),
    *("few_shot_not_applicable", "hardware", "versions"),
)
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
    steps: int = 40
    trials: int = 1


def rotten_tomatoes(source: Path, out: Path) -> None:
    """Every seventh row of validation and every fourth of test: they are in order of labels."""
    for split, step in (("train", 1), ("validation", 7), ("test", 4)):
        header, *rows = _lines(source / f"{split}.tsv")
        (out / f"{split}.tsv").write_text("".join([header, *rows[::step]]), encoding="utf8")


def banking77(source: Path, out: Path) -> None:
    """Of train every tenth row for validation, of which a sixth is kept; every tenth of test."""
    header, *train = _rows(source / "train.csv")
    _, *test = _rows(source / "test.csv")
    held_out = train[::10]
    _write(out / "train.csv", [header, *(row for i, row in enumerate(train) if i % 10)])
    _write(out / "validation.csv", [header, *held_out[::6]])
    _write(out / "test.csv", [header, *test[::10]])


def wnut17(source: Path, out: Path) -> None:
    """The first 150 sentences of development, and 300 of test."""
    names = {"train": "wnut17train.conll", "validation": "emerging.dev.conll",
             "test": "emerging.test.annotated"}  # fmt: skip
    kept = {"train": None, "validation": 150, "test": 300}
    for split, name in names.items():
        text = (source / name).read_text(encoding="utf8")
        sentences = re.split(r"\n[ \t]*\n", text.strip())
        whole = "\n\n".join(sentences[: kept[split]])
        (out / f"{split}.conll").write_text(whole + "\n", encoding="utf8")


SETS = {
    "rotten_tomatoes": Set(rotten_tomatoes, "text-classification", "256", trials=2),
    "banking77": Set(banking77, "text-classification", "500"),
    "wnut17": Set(wnut17, "token-classification", "500", steps=80),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *SETS], metavar="NAME")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    if not options.shared.is_dir():
        sys.exit(f"{options.shared} is not here: the data that comparisons are proven with")
    for name in options.names or SETS:
        found = run(name, options.shared, options.out)
        kept = json.loads(RESULT.read_text(encoding="utf8")) if RESULT.exists() else {}
        kept[name] = found
        ordered = {one: kept[one] for one in SETS if one in kept}
        RESULT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf8")
        write_page(ordered)


def run(name: str, shared: Path, out: Path) -> dict[str, Any]:
    """One command; what it found, without what only this machine's folders know."""
    one, data = SETS[name], out / "data" / name
    if not data.exists():
        data.mkdir(parents=True)
        one.make(shared / "data" / name, data)
    budget = {"steps": one.steps, "trials": one.trials, "seeds": 1, "sizes": one.sizes}
    command = [
        *(sys.executable, "-m", "trimtab", "compare", "--model", "minilm", "--data", str(data)),
        *("--task", one.task, "--methods", ",".join(METHODS), "--no-baselines"),
        *(f"--{key}={value}" for key, value in budget.items()),
        *(f"--tune-arg=batch_size={BATCH}", f"--tune-arg=eval_every={one.steps // 2}"),
        *("--out", str(out / name)),
    ]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads((out / name / "compare.json").read_text(encoding="utf8"))
    return kept_of(found, {**budget, "batch_size": BATCH})


def kept_of(found: dict[str, Any], budget: dict[str, Any]) -> dict[str, Any]:
    kept = {key: found[key] for key in _KEPT}
    rows = [{key: row[key] for key in _ROW} for row in found["rows"]]
    return {"budget": budget, **kept, "rows": rows}


def write_page(kept: dict[str, Any]) -> None:
    """The three tables, in their place in docs/compare.md."""
    before, rest = PAGE.read_text(encoding="utf8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    tables = "".join(f"\n{table(name, one)}\n" for name, one in kept.items())
    PAGE.write_text(f"{before}{MARKS[0]}{tables}{MARKS[1]}{after}", encoding="utf8")


def table(name: str, found: dict[str, Any]) -> str:
    budget = found["budget"]
    rates = f"{budget['trials']} learning rate{'s' * (budget['trials'] > 1)}"
    lines = [
        f"**{name}**, {found['task']}: {budget['sizes']} rows of train, {rates} × "
        f"{budget['steps']} steps of {budget['batch_size']}.",
        "",
        f"| | {found['metric']} | minus full | trained | kept | training | ms | forgot |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(i, row, found) for i, row in enumerate(found["rows"])),
        "",
        f"> {found['verdict']['text']}",
    ]
    return "\n".join(lines) + "\n"


def _line(i: int, row: dict[str, Any], found: dict[str, Any]) -> str:
    took = row["milliseconds"] or {}
    each = took.get("merged") or took.get("unmerged")
    forgot = row["forgetting"] or {}
    seconds = row["seconds"] if row["kind"] == "trained" else None
    cells = (
        f"**{row['method']}**" if found["verdict"]["choice"] == i else row["method"],
        _told(row["test"]),
        _told(row["against"], signed=True),
        f"{row['trained']:,}" if row["trained"] else "–",
        size(row["bytes"]) if row["bytes"] else "–",
        "–" if seconds is None else f"{seconds:.1f} s",
        "–" if each is None else f"{each:.1f}",
        numbers.metric(forgot["adapted"]) if forgot.get("measure") else "–",
    )
    return f"| {' | '.join(cells)} |"


def _told(one: dict[str, Any] | None, *, signed: bool = False) -> str:
    parts = [None if one is None else one[key] for key in ("value", "low", "high")]
    if None in parts:
        return "–"
    value, low, high = (numbers.metric(part, signed=signed) for part in parts)
    return f"{value} [{low}, {high}]"


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
