"""A small task for the real MiniLM, and a plan of it that a real process has made."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def trimtab(*arguments: str) -> Outcome:
    """`trimtab …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def real() -> Callable[..., Outcome]:
    return trimtab


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 sentences of two obviously different kinds."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows((f"A lovely film, number {n} of the year", "good") for n in range(40))
        rows.writerows((f"Part {n} is dull: a waste of time", "bad") for n in range(40))
    return path


@pytest.fixture(scope="session")
def asked(reviews: Path) -> list[str]:
    """What is planned, but for the budget and where it goes."""
    few = ["--examples", "32", "--batch-size", "8", "--max-length", "16", "--most", "4"]
    return ["plan", "--model", "minilm", "--data", str(reviews), "--dtype", "float32", *few]


@pytest.fixture(scope="session")
def made(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A plan's file, and how the process that made it ended."""
    out = tmp_path_factory.mktemp("plans") / "plan.yaml"
    return out, trimtab(*asked, "--budget", "20k", "--out", str(out))
