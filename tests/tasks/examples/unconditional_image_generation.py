"""Pictures of bars, upright and lying, and networks that draw 16 by 16 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

SIZE = 16


def unet(folder: Path, *, classes: int | None = 2, kind: str = "epsilon") -> Path:
    """A pipeline of DDPM."""
    import diffusers

    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    planes = {"in_channels": 1, "out_channels": 1, "sample_size": SIZE, "num_class_embeds": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**planes, **blocks)
    scheduler = diffusers.DDPMScheduler(prediction_type=kind)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


def transformer(folder: Path, *, classes: int = 2) -> Path:
    """A diffusion transformer beside the scheduler of a flow."""
    import diffusers

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 4}
    planes = {"in_channels": 1, "out_channels": 1, "sample_size": SIZE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = diffusers.DiTTransformer2DModel(**planes, **sizes, num_embeds_ada_norm=classes)
    network.save_pretrained(folder / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    parts = {"transformer": ["diffusers", "DiTTransformer2DModel"]}
    parts["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **parts}))
    return folder


def bars(folder: Path, count: int = 48) -> Path:
    """A folder of pictures for each class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 30, (SIZE, SIZE), dtype=np.uint8)
        upright, at = bool(i % 2), int(rng.integers(2, SIZE - 4))
        (pixels.T if upright else pixels)[at : at + 3] = 220
        target = folder / ("upright" if upright else "lying") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return folder


def prepare(folder: Path) -> None:
    unet(folder / "models" / "unet")
    bars(folder / "data" / "bars")
    rows = [{"label": "upright", "seed": 1, "to": "upright.png"}, {"label": "lying", "seed": 2}]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
