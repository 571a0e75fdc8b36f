"""A row of the table: a task on one data set, with one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OF_IMAGENET = (
    *("--task-arg", "mean=[0.485,0.456,0.406]"),
    *("--task-arg", "deviation=[0.229,0.224,0.225]"),
)
"""How a checkpoint takes pictures that does not say so itself."""

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
    targets: dict[str, str] = field(default_factory=dict)  # where not the method's own
