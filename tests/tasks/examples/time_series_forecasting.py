"""Waves of two loads with noise, and networks that see 48 steps and forecast 12."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers as hf

CONTEXT, HORIZON, STEPS = 48, 12, 400
SIZES = {"context_length": CONTEXT, "prediction_length": HORIZON, "d_model": 16}
SIZES |= {"num_input_channels": 1, "patch_length": 8, "patch_stride": 8}


def patchtst(**changes: object) -> hf.PreTrainedModel:
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "pooling_type": None}
    return hf.PatchTSTForPrediction(hf.PatchTSTConfig(**(SIZES | heads | changes)))


def patchtsmixer(**changes: object) -> hf.PreTrainedModel:
    return hf.PatchTSMixerForPrediction(
        hf.PatchTSMixerConfig(**(SIZES | {"num_layers": 2} | changes))
    )


def written(made: Callable[..., hf.PreTrainedModel], folder: Path, **changes: object) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made(**changes).save_pretrained(folder)
    return folder


def waves(steps: int = STEPS) -> dict[str, np.ndarray]:
    """A day of 24 steps, and two loads of different size that follow it."""
    time, rng = np.arange(steps), np.random.default_rng(0)
    day = np.sin(2 * np.pi * time / 24)
    return {
        "load": (100 + 30 * day + rng.normal(0, 3, steps)).round(3),
        "oil": (5 + day + 0.01 * time + rng.normal(0, 0.1, steps)).round(3),
    }


def table(columns: dict[str, np.ndarray]) -> str:
    """Hours, the first of them in January."""
    days = np.datetime64("2024-01-01T00") + np.arange(len(columns["load"]))
    rows = zip(days, *columns.values(), strict=True)
    lines = [",".join(["date", *columns]), *(",".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def prepare(folder: Path) -> None:
    written(patchtst, folder / "models" / "patchtst")
    (folder / "data").mkdir()
    (folder / "data" / "loads.csv").write_text(table(waves()), "utf8")
    past = {name: list(found[-CONTEXT:]) for name, found in waves().items()}
    rows = [json.dumps({"series": name, "past": values}) + "\n" for name, values in past.items()]
    (folder / "new.jsonl").write_text("".join(rows), "utf8")
