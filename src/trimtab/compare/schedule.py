"""Which runs a comparison is made of, and where each lies."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from trimtab.core import registry

FACTOR = 3.0  # between neighbouring learning rates


@dataclass(frozen=True)
class Cell:
    """One run: a method on a base, at a learning rate, from a seed, on so many rows of train."""

    model: str
    method: str
    rows: int | None
    lr: float
    seed: int

    @property
    def place(self) -> Path:
        """Its folder, within that of the comparison."""
        rows = "all" if self.rows is None else str(self.rows)
        name = f"rows-{rows}_lr-{self.lr:g}_seed-{self.seed}"
        return Path("runs") / slug(self.model) / slug(self.method) / name

    def __str__(self) -> str:
        rows = "" if self.rows is None else f", {self.rows} rows"
        return f"{self.method} on {self.model}, lr {self.lr:g}, seed {self.seed}{rows}"


def rates(method: str, trials: int) -> list[float]:
    """The method's own learning rate and its neighbours, by threes: ×1, ×3, ×1/3, ×9, …"""
    own = registry.lookup(method).learning_rate
    powers = [0, *(sign * step for step in range(1, trials) for sign in (1, -1))][:trials]
    return [float(f"{own * FACTOR**power:.3g}") for power in powers]


def slug(name: str) -> str:
    """A name as a folder: what else it holds is told apart by a digest."""
    short = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.")
    if short == name:
        return short
    return f"{short or 'base'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
