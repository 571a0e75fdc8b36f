"""A row of the table: a task on one data set, with one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Make = Callable[[Path, Path], None]  # (the shared folder, or its part, and where to write)


@dataclass(frozen=True)
class Row:
    """`model` is a name, a folder of the shared models, or one of a module's MODELS; `data` one of
    its DATA, or of `prepare.py`."""

    task: str
    model: str
    data: str
    steps: int = 200
    options: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("lora", "bitfit", "full")
    rates: dict[str, float] = field(default_factory=dict)
