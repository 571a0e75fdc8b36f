"""Series in time: a network trained on a transformer's loads, adapted to its oil's temperature."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from pretraining import Drawn, trained
from row import Make, Row

_CONTEXT, _HORIZON = 7 * 24, 24
_MONTH = 30 * 24
_ENDS = {"train": (0, 12), "validation": (12, 16), "test": (16, 20)}  # months, as is usual for ETT
_LOADS, _OIL = ("HUFL", "MUFL"), "OT"
_LENGTHS = {"context_length": _CONTEXT, "prediction_length": _HORIZON, "num_input_channels": 1}
_PATCHES = {"patch_length": 12, "patch_stride": 12}


def oil(source: Path, out: Path) -> None:
    """The oil's temperature by the hour; the `past` of what is held out reaches back."""
    rows = _hours(source / "ett")
    for split, (first, last) in _ENDS.items():
        begin = max(0, first * _MONTH - _CONTEXT)
        with (out / f"{split}.csv").open("w", encoding="utf8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["date", _OIL])
            writer.writerows((row["date"], row[_OIL]) for row in rows[begin : last * _MONTH])


def patchtst(shared: Path, out: Path) -> None:
    """A PatchTST pre-trained on two other columns, the high and the middle load, in the months that
    are trained on: a day from a week, 400 batches of 64 windows."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    sizes = {"d_model": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 128}
    torch.manual_seed(0)
    model = PatchTSTForPrediction(
        PatchTSTConfig(**sizes, **_PATCHES, **_LENGTHS, pooling_type=None)
    )
    forecaster(model, shared).save_pretrained(out)


def patchtsmixer(shared: Path, out: Path) -> None:
    """A PatchTSMixer, likewise."""
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    torch.manual_seed(0)
    config = PatchTSMixerConfig(d_model=48, num_layers=4, **_PATCHES, **_LENGTHS)
    forecaster(PatchTSMixerForPrediction(config), shared).save_pretrained(out)


def forecaster(model: Any, shared: Path) -> Any:
    """Trained on windows of the loads, each standardised by its own past."""
    rows = _hours(shared / "data" / "ett")[: _ENDS["train"][1] * _MONTH]
    values = torch.tensor([[float(row[name]) for row in rows] for name in _LOADS])
    windows = values.unfold(-1, _CONTEXT + _HORIZON, 1).flatten(0, 1)[..., None]

    def loss(drawn: Drawn) -> torch.Tensor:
        past, future = windows[drawn(len(windows))].split([_CONTEXT, _HORIZON], dim=1)
        outputs = model(past_values=past)
        return ((outputs.prediction_outputs - future) / outputs.scale).square().mean()

    return trained(model, 400, loss)


def _hours(source: Path) -> list[dict[str, str]]:
    with (source / "ETTh1.csv").open(encoding="utf8") as file:
        return list(csv.DictReader(file))


_OF_HOURS = ("--task-arg", "season=24", "--task-arg", "stride=6")
DATA: dict[str, Make] = {"oil": oil}
MODELS: dict[str, Make] = {"patchtst": patchtst, "patchtsmixer": patchtsmixer}
ROWS = {
    "oil": Row("time-series-forecasting", "patchtst", "oil", options=_OF_HOURS),
    "oil-mixer": Row("time-series-forecasting", "patchtsmixer", "oil", options=_OF_HOURS),
}
