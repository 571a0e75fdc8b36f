"""Balls and boxes as clouds of points, and a tiny network that knows three shapes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

TASK = Path(__file__).parents[3] / "benchmarks" / "tasks" / "own" / "point_clouds.py"
SIZES = {"points": 64, "groups": 8, "neighbours": 8, "width": 16, "depth": 1, "heads": 2}


def shape(name: str, rng: np.random.Generator, n: int = 100) -> np.ndarray:
    x = rng.normal(size=(n, 3)) if name == "ball" else rng.uniform(-1, 1, (n, 3))
    far = np.linalg.norm(x, axis=1) if name == "ball" else np.abs(x).max(1)
    return (x / far[:, None]).astype(np.float32)


def clouds(folder: Path, each: int = 20) -> Path:
    """A list of files, with the label of each."""
    rng, rows = np.random.default_rng(0), ["points,label"]
    folder.mkdir(parents=True)
    for i in range(each):
        for name in ("ball", "box"):
            np.save(folder / f"{name}{i}.npy", shape(name, rng))
            rows.append(f"{name}{i}.npy,{name}")
    (folder / "shapes.csv").write_text("\n".join(rows) + "\n", "utf8")
    return folder / "shapes.csv"


def network(folder: Path) -> Path:
    """By the task's own module, which must be importable."""
    from point_clouds import PointTransformer, Sizes, write  # type: ignore[import-not-found]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write(PointTransformer(Sizes(labels=("cone", "cube", "torus"), **SIZES)), folder)
    return folder


def prepare(folder: Path) -> None:
    shutil.copyfile(TASK, folder / "point_clouds.py")
    sys.path.insert(0, str(folder))
    network(folder / "models" / "shapes")
    sys.path.remove(str(folder))
    clouds(folder / "data" / "shapes")
    (folder / "new").mkdir()
    np.savetxt(folder / "new" / "one.xyz", shape("ball", np.random.default_rng(1)))
