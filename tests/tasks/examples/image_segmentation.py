"""Pictures with a bright square, and masks that say where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_vision import written


def prepare(folder: Path) -> None:
    written("segformer", folder / "models")
    rng, data = np.random.default_rng(0), folder / "data" / "membranes"
    for name in (data / "images", data / "masks", folder / "new"):
        name.mkdir(parents=True)
    for i in range(12):
        left, top = rng.integers(0, 40, 2)
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[top : top + 24, left : left + 24] = 1
        seen = Image.fromarray(60 + 130 * np.repeat(mask[..., None], 3, -1))
        seen.save(data / "images" / f"{i}.png")
        Image.fromarray(mask).save(data / "masks" / f"{i}.png")
    seen.save(folder / "new" / "a.png")
