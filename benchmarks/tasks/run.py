"""Every task on real data: base, head only, LoRA, another method and full fine-tuning.

    python benchmarks/tasks/run.py [ROW …] [--shared ../shared] [--out FOLDER] [--again]

Each run is the command line in a process of its own, under a fixed small budget of steps, and
leaves results/tasks/ROW-METHOD.json; one that is there is not run again, so that a stopped
collection goes on. Then docs/tasks.md's table is written from what is there (`page.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prepare
import prepare_qa

RESULTS = Path(__file__).parents[1] / "results" / "tasks"
KEPT = (
    *("task", "metric", "higher_is_better", "method", "test", "baselines", "gain_over", "metrics"),
    *("trainable", "total", "adapter_bytes", "train_seconds", "wall_seconds", "peak_memory_bytes"),
    *("best_step", "seed", "versions", "hardware", "notes"),
)


@dataclass(frozen=True)
class Row:
    """A task on one data set: `model` is a name, or a folder of the shared models."""

    task: str
    model: str
    data: str
    steps: int = 200
    options: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("lora", "bitfit", "full")
    rates: dict[str, float] = field(default_factory=dict)


ROWS = {
    "reviews": Row("text-classification", "minilm", "rotten_tomatoes"),
    "intents": Row("text-classification", "minilm", "banking77", steps=400),
    "entities": Row("token-classification", "minilm", "wnut17"),
    "questions": Row("question-answering", "minilm", "questions"),
    "similarity": Row(
        *("sentence-similarity", "minilm", "banking77"),
        options=("--task-arg", "kind=label", "--batch-size", "64"),
    ),
    "shakespeare": Row("text-generation", "stories260K", "tinyshakespeare"),
    "problems": Row(
        *("text-generation", "stories260K", "gsm8k"),
        options=("--task-arg", "form=answer", "--batch-size", "8"),
    ),
    "spelling": Row(
        *("text2text-generation", "bart-g2p-us", "cmudict"),
        options=("--task-arg", "measure=character_error_rate"),
    ),
    "digits": Row(
        *("image-classification", "deit-tiny-patch16-224", "mnist_t10k"),
        options=("--batch-size", "16"),
    ),
    "solubility": Row(
        "text-classification", "minilm", "delaney", options=("--task-arg", "kind=number")
    ),
    "toxicity": Row(
        "text-classification", "minilm", "tox21", options=("--task-arg", "kind=several")
    ),
    "income": Row("text-classification", "minilm", "adult"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--again", action="store_true", help="run what is there already")
    options = parser.parse_args()
    if not options.shared.is_dir():
        sys.exit(f"{options.shared} is not here: the models and data that tasks are proven with")
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.rows or ROWS:
            for method in ROWS[name].methods:
                result = RESULTS / f"{name}-{method}.json"
                if options.again or not result.exists():
                    found = run(ROWS[name], method, options.shared, Path(folder))
                    result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
                    told = {key: found[key] for key in ("metric", "test", "train_seconds")}
                    print(name, method, json.dumps(told), flush=True)


def run(row: Row, method: str, shared: Path, folder: Path) -> dict[str, Any]:
    data = folder / row.data
    if not data.exists():
        made(row.data, shared / "data", data)
    out = tempfile.mkdtemp(dir=folder)
    model = shared / "models" / row.model
    told = {
        "task": row.task,
        "model": model if model.is_dir() else row.model,
        "data": data,
        "method": method,
        "out": out,
        "max-steps": row.steps,
        "eval-every": max(1, row.steps // 4),
    }
    if method in row.rates:
        told["lr"] = row.rates[method]
    flags = [part for key, value in told.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "trimtab", "tune", *flags, *row.options, "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{process.stderr[-2000:]}")
    found = json.loads(process.stdout.splitlines()[-1])
    kept = {key: found[key] for key in KEPT}
    return {"data": row.data, "model": row.model, "steps": row.steps, **kept}


def made(name: str, source: Path, out: Path) -> None:
    """The data set in files that Trimtab reads."""
    if name == "questions":
        prepare_qa.write(source / "e2e_nlg", out)
    else:
        prepare.main([str(source), str(out.parent), name])


if __name__ == "__main__":
    main()
