"""Pictures of cells, dark on bright, with their boxes in Pascal VOC's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_vision import written

_BOX = (
    "<annotation><object><name>cell</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>"
)


def picture(rng: np.random.Generator, path: Path) -> tuple[int, ...]:
    """With a cell in it: left, top, right and bottom."""
    left, top = (int(at) for at in rng.integers(1, 30, 2))
    pixels = rng.integers(200, 256, (60, 80, 3)).astype(np.uint8)
    pixels[top : top + 20, left : left + 20] = 60
    Image.fromarray(pixels).save(path)
    return left, top, left + 20, top + 20


def prepare(folder: Path) -> None:
    written("detr", folder / "models")
    rng, cells = np.random.default_rng(0), folder / "data" / "cells"
    for name in ("JPEGImages", "Annotations"):
        (cells / name).mkdir(parents=True)
    for i in range(16):
        box = picture(rng, cells / "JPEGImages" / f"{i}.jpg")
        (cells / "Annotations" / f"{i}.xml").write_text(_BOX.format(*box), "utf8")
    (folder / "new").mkdir()
    picture(rng, folder / "new" / "a.jpg")
