"""The command line as a user meets it: a real process, or, where that is too slow, its `main`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def process(*arguments: str, stdin: str = "") -> Outcome:
    """`trimtab …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *arguments],
        input=stdin,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def real() -> Callable[..., Outcome]:
    return process


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """cli(*arguments, stdin=…) -> how `trimtab …` ends, in this process."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["trimtab", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 sentences of two obviously different kinds."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows((f"A lovely film, number {n} of the year", "good") for n in range(30))
        rows.writerows((f"Part {n} is dull: a waste of time", "bad") for n in range(30))
    return path


@pytest.fixture(scope="session")
def flags(reviews: Path) -> list[str]:
    """A short run on MiniLM, but for `--out`."""
    short = ["--max-steps", "2", "--batch-size", "8", "--max-length", "16", "--target", "query"]
    pinned = ["--dtype", "float32", "--attention", "eager"]
    return ["tune", "--model", "minilm", "--data", str(reviews), *short, *pinned]


@pytest.fixture(scope="session")
def tuned(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run made by a real process with `--json`, and how that ended."""
    out = tmp_path_factory.mktemp("runs") / "reviews"
    return out, process(*flags, "--out", str(out), "--json")


@pytest.fixture
def run(tuned: tuple[Path, Outcome]) -> str:
    out, outcome = tuned
    assert outcome.code == 0, outcome.err
    return str(out)


@pytest.fixture
def metrics(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "metrics.json").read_text())
