"""Pictures and control: networks that know some digits draw others, a policy meets a new world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import prepare
import torch
from own import point_mass
from pretraining import Drawn, trained
from row import Make, Row
from torch import Tensor

_KNOWN = 5  # digits below it were pre-trained on, the others are adapted to
_SCALE = 10.0  # of returns


def new_digits(source: Path, out: Path) -> None:
    """The digits 5 to 9 of MNIST's test set, of its splits as everywhere here."""
    import pyarrow.compute
    import pyarrow.parquet

    prepare.mnist_t10k(source / "mnist_t10k", out)
    for path in out.glob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        new = pyarrow.compute.greater_equal(table["label"], str(_KNOWN))
        pyarrow.parquet.write_table(table.filter(new), path)


def unet(shared: Path, out: Path) -> None:
    """A UNet that denoises the digits 0 to 4, in 16 by 16 pixels: 700 batches of 64."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    scheduler = diffusers.DDPMScheduler()
    denoiser(network, scheduler, _digits(shared, 16), None, 700)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(out)


def dit(shared: Path, out: Path) -> None:
    """A diffusion transformer, of a flow over 7 by 7 patches: the same digits, 1,000 batches."""
    import diffusers

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 3, "patch_size": 4}
    planes = {"in_channels": 1, "out_channels": 1, "sample_size": 28, "num_embeds_ada_norm": 1}
    network = diffusers.DiTTransformer2DModel(**planes, **sizes)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pixels = _digits(shared, 28)
    denoiser(network, scheduler, pixels, torch.zeros(len(pixels), dtype=torch.long), 1000)
    network.save_pretrained(out / "transformer")
    scheduler.save_pretrained(out / "scheduler")
    parts = {"transformer": ["diffusers", "DiTTransformer2DModel"]}
    parts["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    index = {"_class_name": "DiTPipeline", **parts}
    (out / "model_index.json").write_text(json.dumps(index) + "\n", "utf8")


def denoiser(
    network: Any, scheduler: Any, pixels: Tensor, classes: Tensor | None, steps: int
) -> Any:
    from trimtab.tasks.denoisers import Noise, said

    noise = Noise(scheduler)

    def loss(drawn: Drawn) -> Tensor:
        chosen = drawn(len(pixels))
        x = pixels[chosen]
        mixed, times, target = noise.mixed(x, torch.randn_like(x), drawn(len(noise.times)))
        told = None if classes is None else classes[chosen]
        return (said(network, mixed, times, told) - target).square().mean()

    return trained(network, steps, loss, lr=2e-3)


def _digits(shared: Path, size: int) -> Tensor:
    """The digits 0 to 4 that are trained on: (n, 1, size, size) from -1 to 1."""
    from PIL import Image

    folder = shared / "data" / "mnist_t10k"
    values, (_, height, width) = prepare._idx(folder / "t10k-images-idx3-ubyte.gz")
    labels, _ = prepare._idx(folder / "t10k-labels-idx1-ubyte.gz")
    every = np.frombuffer(values, dtype=np.uint8).reshape(-1, height, width)[:8000]
    known = every[np.frombuffer(labels, dtype=np.uint8)[:8000] < _KNOWN]
    made = [np.asarray(Image.fromarray(one).resize((size, size))) for one in known]
    return torch.tensor(np.stack(made), dtype=torch.float32)[:, None] / 127.5 - 1


def pushes(source: Path, out: Path) -> None:
    """Trajectories of controllers under the new dynamics: 200, 50 and 200."""
    for seed, (split, n) in enumerate((("train", 200), ("validation", 50), ("test", 200))):
        found = point_mass.controlled(point_mass.NEW, n, seed)
        names = ("states", "actions", "rewards")
        rows = (
            dict(zip(names, (x.round(5).tolist() for x in one), strict=True))
            for one in zip(*found, strict=True)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(text, "utf8")


def policy(shared: Path, out: Path) -> None:
    """A decision transformer trained on 3,000 trajectories under the known dynamics: 800 batches of
    64 pieces of 20 steps."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "n_layer": 3, "n_head": 2, "max_ep_len": point_mass.STEPS}
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = DecisionTransformerConfig(state_dim=4, act_dim=2, **sizes, **ends)
    model = DecisionTransformerModel(config)
    found = point_mass.controlled(point_mass.KNOWN, 3000, 7)
    states, actions, rewards = (torch.tensor(one, dtype=torch.float32) for one in found)
    to_go = rewards.flip(1).cumsum(1).flip(1)[..., None] / _SCALE

    def loss(drawn: Drawn) -> Tensor:
        rows, begin = drawn(len(states))[:, None], drawn(point_mass.STEPS - 19)[:, None]
        at = begin + torch.arange(20)
        told = {"returns_to_go": to_go[rows, at], "timesteps": at}
        said = model(states=states[rows, at], actions=actions[rows, at], **told).action_preds
        return (said - actions[rows, at]).square().mean()

    trained(model, 800, loss).save_pretrained(out)


_OF_POLICY = ("simulator=own.point_mass:new", f"scale={_SCALE:g}")
DATA: dict[str, Make] = {"new-digits": new_digits, "pushes": pushes}
MODELS: dict[str, Make] = {"unet": unet, "dit": dit, "policy": policy}
ROWS = {
    "drawing": Row("unconditional-image-generation", "unet", "new-digits"),
    "drawing-flow": Row("unconditional-image-generation", "dit", "new-digits"),
    "control": Row(
        "reinforcement-learning",
        "policy",
        "pushes",
        options=tuple(part for one in _OF_POLICY for part in ("--task-arg", one)),
    ),
}
