"""Video: shapes that move. The label is the direction, which no single frame tells.

A clip is 8 frames of 32 × 32 pixels. A light shape, 5 to 8 pixels large, begins anywhere and goes 2
to 4 pixels a frame in one direction; what leaves on one side comes back on the other, so that
places say nothing. The ground is dark, and all pixels have noise of deviation 8. (A small model
learned nothing where shapes could be darker than their ground.)
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image
from pretraining import Drawn, trained
from row import Make, Row
from torch import Tensor
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

FRAMES, SIDE = 8, 32
STRAIGHT = {"right": 0, "down": 90, "left": 180, "up": 270}  # degrees, clockwise
OBLIQUE = {"down-right": 45, "down-left": 135, "up-left": 225, "up-right": 315}
SIZES = {"train": 320, "validation": 80, "test": 200}


def clip(rng: np.random.Generator, degrees: float, shape: str) -> np.ndarray:
    """(frames, side, side, 3) bytes."""
    turn, speed = math.radians(degrees), rng.uniform(2, 4)
    step = speed * np.array([math.sin(turn), math.cos(turn)])  # rows, columns
    start, radius = rng.uniform(0, SIDE, 2), rng.uniform(2.5, 4)
    ground, colour = rng.integers(0, 80, 3), rng.integers(160, 256, 3)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1)
    out = np.empty((FRAMES, SIDE, SIDE, 3))
    for i in range(FRAMES):
        away = np.abs((grid - start - i * step + SIDE / 2) % SIDE - SIDE / 2)
        far = away.max(-1) if shape == "square" else np.hypot(away[..., 0], away[..., 1])
        out[i] = np.where(far[..., None] < radius, colour, ground)
    return (out + rng.normal(0, 8, out.shape)).clip(0, 255).astype(np.uint8)


def moving_discs(shared: Path, out: Path) -> None:
    """Discs that go right, down, left and up, as animated GIFs in a folder for each direction."""
    for number, (split, size) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        for i in range(size):
            label = list(STRAIGHT)[i % len(STRAIGHT)]
            frames = [Image.fromarray(one) for one in clip(rng, STRAIGHT[label], "disc")]
            path = out / split / label / f"{i}.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)


def videomae(shared: Path, out: Path) -> None:
    """VideoMAE, 0.25 million parameters, pre-trained here to tell obliquely moving squares apart:
    400 batches of 32 clips."""
    torch.manual_seed(0)
    config = hf.VideoMAEConfig(
        image_size=SIDE,
        patch_size=8,
        num_frames=FRAMES,
        tubelet_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        use_mean_pooling=True,
        id2label=dict(enumerate(OBLIQUE)),
        label2id={label: i for i, label in enumerate(OBLIQUE)},
    )
    model = hf.VideoMAEForVideoClassification(config)
    rng = np.random.default_rng(0)
    directions = list(OBLIQUE.values())
    made = [clip(rng, directions[i % 4], "square") for i in range(2000)]
    pixels = torch.from_numpy(np.stack(made)).permute(0, 1, 4, 2, 3) / 127.5 - 1
    labels = torch.arange(len(made)) % 4

    def loss(drawn: Drawn) -> Tensor:
        places = drawn(len(made))
        return model(pixel_values=pixels[places], labels=labels[places]).loss

    trained(model, 400, loss, batch=32, lr=2e-3, clip=1.0).save_pretrained(out)
    half, sides = [0.5, 0.5, 0.5], {"height": SIDE, "width": SIDE}
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=sides, image_mean=half, image_std=half
    )
    processor.save_pretrained(out)


DATA: dict[str, Make] = {"moving_discs": moving_discs}
MODELS: dict[str, Make] = {"videomae-oblique": videomae}
ROWS = {
    "movement": Row(
        *("video-classification", "videomae-oblique", "moving_discs"),
        options=("--batch-size", "16"),
        steps=150,
        rates={"lora": 3e-3, "bitfit": 3e-3, "full": 5e-4},
    ),
}
