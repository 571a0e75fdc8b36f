"""A small task for the real MiniLM, and one finished run on it that many tests look at."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.tune.config import Config, parse
from trimtab.tune.run import tune

STEPS = 8


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 sentences of two obviously different kinds."""
    path = tmp_path_factory.mktemp("data") / "sentences.csv"
    pets, days = ("cat", "dog", "hamster", "parrot", "rabbit"), range(1, 11)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for pet in pets:
            rows.writerows((f"My {pet} slept for {n} hours on the warm sofa", "home") for n in days)
            rows.writerows((f"The {pet} bank raised interest by {n} points", "money") for n in days)
    return path


@pytest.fixture(scope="session")
def settings(sentences: Path) -> Callable[..., Config]:
    """settings(out, …) -> a short run on MiniLM; nothing in it is left to measurement."""

    def settings(out: Path, **changes: Any) -> Config:
        fields: dict[str, Any] = {
            "model": "minilm",
            "data": str(sentences),
            "out": str(out),
            "max_steps": STEPS,
            "save_every": 2,
            "eval_every": 4,
            "batch_size": 8,
            "max_length": 16,
            "dtype": "float32",
            "attention": "eager",
            "products": "exact",
            "target": ["query", "value"],
        }
        return parse({**fields, **changes}, "a test")

    return settings


@pytest.fixture(scope="session")
def finished(
    settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run that was never stopped: its folder, and what it returned."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, tune(settings(out), quiet=True)
