"""Every task on real data: base, head only, LoRA, another method and full fine-tuning.

    python benchmarks/tasks/run.py [ROW …] [--shared F] [--methods M,…] [--again] [--steps N]

Each run is the command line in a process of its own, under a fixed small budget of steps, and
leaves results/tasks/ROW-METHOD.json; one that is there is not run again, so that a stopped
collection goes on. What is made of the shared data, and models that are pre-trained here, stay in
`made/`. Then docs/tasks.md's table is written from what is there (`page.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import prepare
from row import Make, Row
from rows import DATA, MODELS, ROWS

RESULTS = Path(__file__).parents[1] / "results" / "tasks"
KEPT = (
    *("task", "metric", "higher_is_better", "method", "test", "baselines", "gain_over", "metrics"),
    *("trainable", "total", "adapter_bytes", "train_seconds", "data_seconds", "peak_memory_bytes"),
    *("best_step", "seed", "versions", "hardware", "notes"),
)


CACHE = Path(__file__).parent / "made"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--again", action="store_true", help="run what is there already")
    parser.add_argument("--methods", help="some of each row's: lora,bitfit")
    parser.add_argument("--steps", type=int, help="a trial of fewer steps, of which nothing stays")
    options = parser.parse_args()
    if not options.shared.is_dir():
        sys.exit(f"{options.shared} is not here: the models and data that tasks are proven with")
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in options.rows or ROWS:
        for method in ROWS[name].methods:
            if options.methods and method not in options.methods.split(","):
                continue
            result = RESULTS / f"{name}-{method}.json"
            if result.exists() and not options.again and options.steps is None:
                continue
            row = ROWS[name] if options.steps is None else replace(ROWS[name], steps=options.steps)
            try:
                found = run(row, method, options.shared)
            except RuntimeError as error:  # the others go on
                failed.append(f"{name} {method}: {error}")
                print(failed[-1], flush=True)
                continue
            if options.steps is None:
                result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
            told = {key: found[key] for key in ("metric", "test", "baselines", "train_seconds")}
            print(name, method, json.dumps(told), flush=True)
    if failed:
        sys.exit("\n".join(["not everything ran:", *failed]))


def run(row: Row, method: str, shared: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        told = {
            "task": row.task,
            "model": model(row.model, shared),
            "data": data(row.data, shared),
            "method": method,
            "out": out,
            "max-steps": row.steps,
            "eval-every": max(1, row.steps // 4),
        }
        if method in row.rates:
            told["lr"] = row.rates[method]
        if method in row.targets:
            told["target"] = row.targets[method]
        flags = [part for key, value in told.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "trimtab", "tune", *flags, *row.options, "--json"]
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]  # tasks in own/
        own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{process.stderr[-2000:]}")
    found = json.loads(process.stdout.splitlines()[-1])
    kept = {key: found[key] for key in KEPT}
    kept["notes"] = [note.replace(f"{CACHE / 'data'}/", "") for note in found["notes"]]
    return {"data": row.data, "model": row.model, "steps": row.steps, **kept}


def model(name: str, shared: Path) -> str:
    """A name, or the folder of a model that is shared or made here."""
    if name in MODELS:
        return str(made(CACHE / "models" / name, MODELS[name], shared))
    folder = shared / "models" / name
    return str(folder) if folder.is_dir() else name


def data(name: str, shared: Path) -> str:
    """The data set in files that Trimtab reads."""
    if name in DATA:
        return str(made(CACHE / "data" / name, DATA[name], shared / "data"))

    def prepared(source: Path, out: Path) -> None:
        prepare.PREPARE[name](source / name, out)

    return str(made(CACHE / "data" / name, prepared, shared / "data"))


def made(out: Path, make: Make, source: Path) -> Path:
    """What is made once; a folder that was not finished is made again."""
    if not out.exists():
        begun = out.with_name(f"{out.name}.begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        make(source, begun)
        begun.rename(out)
    return out


if __name__ == "__main__":
    main()
