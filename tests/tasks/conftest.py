"""Where the shared models and data lie, and a run that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.tune.config import Config, parse

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Path]:
    """given(train=rows, validation=rows, test=rows) -> a folder of JSON Lines."""

    def given(**splits: Rows) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for split, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf8")
        return folder

    return given


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., Config]:
    """quick(model=…, data=…, task=…) -> a short run; nothing in it is left to measurement."""

    def quick(**changes: Any) -> Config:
        fields = {
            "out": str(tmp_path / "run"),
            "max_steps": 6,
            "eval_every": 3,
            "batch_size": 8,
            "dtype": "float32",
            "attention": "eager",
            "products": "exact",
            "replicas": 1,
            **{key: str(x) if isinstance(x, Path) else x for key, x in changes.items()},
        }
        return parse(fields, "the test")

    return quick
