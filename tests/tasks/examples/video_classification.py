"""A tiny VideoMAE, and squares that go left or right."""

from __future__ import annotations

from pathlib import Path

from tiny_video import animated, clips, moving, videomae


def prepare(folder: Path) -> None:
    videomae(folder / "models" / "videomae")
    clips(folder / "data" / "moves")
    animated(folder / "new" / "a.gif", moving("left", seed=100))
