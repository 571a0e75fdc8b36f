"""A tiny random VideoMAE, and clips of a square that moves: the label is where it goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

FRAMES, SIDE = 4, 16


def videomae(folder: Path) -> Path:
    """Written as a checkpoint is: weights, configuration, processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.VideoMAEConfig(
            image_size=SIDE,
            patch_size=8,
            num_frames=FRAMES,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
        model = hf.VideoMAEForVideoClassification(config)
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def moving(label: str, seed: int = 0, count: int = 6) -> np.ndarray:
    """(count, 16, 20, 3) bytes: a white square in noise, which goes left or right."""
    rng = np.random.default_rng(seed)
    row, column = rng.integers(0, 12), rng.integers(0, 20)
    out = rng.integers(0, 80, (count, 16, 20, 3), dtype=np.uint8)
    for i in range(count):
        at = column + (3 * i if label == "right" else -3 * i)
        out[i, row : row + 4, [(at + j) % 20 for j in range(4)]] = 255
    return out


def animated(path: Path, frames: np.ndarray) -> Path:
    """A GIF, WebP or PNG, by the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.fromarray(one) for one in frames)
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, **lossless)
    return path


def clips(folder: Path, each: int = 12) -> Path:
    """A folder of GIFs for each label."""
    for label in ("left", "right"):
        for i in range(each):
            animated(folder / label / f"{i}.gif", moving(label, seed=i))
    return folder
