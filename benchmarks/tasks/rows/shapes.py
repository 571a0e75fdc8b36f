"""Shapes in space, made here: a network knows some that stand upright, and is adapted to others,
turned every way, with noise and few points.

A surface is drawn from by its own formula; sizes and proportions differ from shape to shape.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from own.point_clouds import PointTransformer, Sizes, seen, write
from pretraining import Drawn, trained
from row import Make, Row

Rng = np.random.Generator

_POINTS = 400
_KNOWN, _KNOWN_NOISE = 300, 0.01  # clouds of each known shape, and the noise beside a size of 1
_NEW, _NEW_NOISE = {"train": 30, "validation": 20, "test": 60}, 0.04


def sphere(rng: Rng, n: int) -> np.ndarray:
    x = rng.normal(size=(n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cube(rng: Rng, n: int) -> np.ndarray:
    x = rng.uniform(-1, 1, (n, 3))
    x[np.arange(n), rng.integers(0, 3, n)] = rng.choice([-1.0, 1.0], n)
    return x


def torus(rng: Rng, n: int) -> np.ndarray:
    thin = rng.uniform(0.2, 0.4)
    around, within = rng.uniform(0, 2 * np.pi, (2, n))
    ring = 1 + thin * np.cos(within)
    return np.stack([ring * np.cos(around), ring * np.sin(around), thin * np.sin(within)], 1)


def cone(rng: Rng, n: int) -> np.ndarray:
    """Its base among it."""
    angle, wide = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0, 1, n))
    height = np.where(rng.random(n) < 0.3, -1.0, 1 - 2 * wide)
    return np.stack([wide * np.cos(angle), wide * np.sin(angle), height], 1)


def cylinder(rng: Rng, n: int) -> np.ndarray:
    angle, end = rng.uniform(0, 2 * np.pi, n), rng.random(n) < 0.35
    wide = np.where(end, np.sqrt(rng.uniform(0, 1, n)), 1.0)
    height = np.where(end, rng.choice([-1.0, 1.0], n), rng.uniform(-1, 1, n))
    return np.stack([wide * np.cos(angle), wide * np.sin(angle), height], 1)


def capsule(rng: Rng, n: int) -> np.ndarray:
    """A cylinder between two halves of a ball."""
    x = 0.7 * sphere(rng, n)
    return np.where(rng.random((n, 1)) < 0.5, _side(rng, n), x + [0, 0, 0.7] * np.sign(x[:, 2:]))


def _side(rng: Rng, n: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([0.7 * np.cos(angle), 0.7 * np.sin(angle), rng.uniform(-0.7, 0.7, n)], 1)


def pyramid(rng: Rng, n: int) -> np.ndarray:
    """Over a square."""
    x = cube(rng, n)[:, :2]
    wide = np.sqrt(rng.uniform(0, 1, n))
    edge = x / np.abs(x).max(1, keepdims=True) * wide[:, None]
    return np.concatenate([edge, np.where(rng.random(n) < 0.3, -1.0, 1 - 2 * wide)[:, None]], 1)


def helix(rng: Rng, n: int) -> np.ndarray:
    """A coiled tube of three turns."""
    way = rng.uniform(-1, 1, n)
    line = np.stack([np.cos(3 * np.pi * way), np.sin(3 * np.pi * way), way], 1)
    return line + 0.2 * sphere(rng, n)


def saddle(rng: Rng, n: int) -> np.ndarray:
    x, y = rng.uniform(-1, 1, (2, n))
    return np.stack([x, y, x * x - y * y], 1)


def bowl(rng: Rng, n: int) -> np.ndarray:
    x = sphere(rng, n)
    return np.stack([x[:, 0], x[:, 1], -np.abs(x[:, 2])], 1)


KNOWN: tuple[Callable[[Rng, int], np.ndarray], ...] = (sphere, cube, torus, cone, cylinder)
NEW: tuple[Callable[[Rng, int], np.ndarray], ...] = (
    *(cube, cone, capsule, pyramid, helix, saddle, bowl, torus),
)


def cloud(shape: Callable[[Rng, int], np.ndarray], rng: Rng, noise: float) -> np.ndarray:
    """Stretched along each axis by up to a quarter."""
    x = shape(rng, _POINTS) * rng.uniform(0.75, 1.25, 3)
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32)


def turned(x: np.ndarray, rng: Rng) -> np.ndarray:
    """By a rotation that any other is as likely as (Haar)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return (x @ q.T).astype(np.float32)


def turned_shapes(source: Path, out: Path) -> None:
    """Eight shapes, five of them new, turned every way."""
    rng = np.random.default_rng(1)
    (out / "clouds").mkdir()
    for split, n in _NEW.items():
        listed = ["points,label"]
        for shape in NEW:
            for i in range(n):
                x = turned(cloud(shape, rng, _NEW_NOISE), rng)
                name = f"clouds/{split}-{shape.__name__}-{i:03d}.npy"
                np.save(out / name, x[: rng.integers(150, _POINTS)])
                listed.append(f"{name},{shape.__name__}")
        (out / f"{split}.csv").write_text("\n".join(listed) + "\n", "utf8")


def point_transformer(shared: Path, out: Path) -> None:
    """Pre-trained to tell five upright shapes apart: 400 batches of 32."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = PointTransformer(Sizes(labels=tuple(shape.__name__ for shape in KNOWN)))
    clouds = [
        seen(cloud(shape, rng, _KNOWN_NOISE), model.sizes.points)
        for shape in KNOWN
        for _ in range(_KNOWN)
    ]
    points, labels = (
        torch.tensor(np.stack(clouds)),
        torch.arange(len(KNOWN)).repeat_interleave(_KNOWN),
    )

    def loss(drawn: Drawn) -> torch.Tensor:
        places = drawn(len(points))
        return F.cross_entropy(model(points[places]), labels[places])

    write(trained(model, 400, loss, batch=32), out)


DATA: dict[str, Make] = {"turned-shapes": turned_shapes}
MODELS: dict[str, Make] = {"point-transformer": point_transformer}
ROWS = {
    "shapes": Row(
        *("own.point_clouds:PointClouds", "point-transformer", "turned-shapes"),
        steps=300,
        rates={"full": 1e-3},  # as it was pre-trained with
    ),
}
