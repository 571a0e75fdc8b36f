"""Series in time, molecules, shapes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from row import Make, Row

# Time series

_CONTEXT, _HORIZON = 336, 96
_MONTH = 30 * 24
_ENDS = {"train": (0, 12), "validation": (12, 16), "test": (16, 20)}  # months, as is usual for ETT
_OIL = "OT"


def oil(source: Path, out: Path) -> None:
    """The hours of a transformer's oil temperature; the `past` of what is held out reaches back."""
    rows = _hours(source / "ett")
    for split, (first, last) in _ENDS.items():
        begin = max(0, first * _MONTH - _CONTEXT)
        with (out / f"{split}.csv").open("w", encoding="utf8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["date", _OIL])
            writer.writerows((row["date"], row[_OIL]) for row in rows[begin : last * _MONTH])


def patchtst(shared: Path, out: Path) -> None:
    """A PatchTST pre-trained on the six other columns, the transformer's loads, in the months that
    are trained on: 600 batches of 64 windows."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    sizes = {"d_model": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 128}
    patches = {"patch_length": 16, "patch_stride": 16, "pooling_type": None}
    lengths = {"context_length": _CONTEXT, "prediction_length": _HORIZON, "num_input_channels": 1}
    torch.manual_seed(0)
    model = PatchTSTForPrediction(PatchTSTConfig(**sizes, **patches, **lengths))
    forecaster(model, shared, steps=600).save_pretrained(out)


def patchtsmixer(shared: Path, out: Path) -> None:
    """A PatchTSMixer of the same lengths, trained likewise."""
    from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

    sizes = {"d_model": 48, "num_layers": 4, "patch_length": 16, "patch_stride": 16}
    lengths = {"context_length": _CONTEXT, "prediction_length": _HORIZON, "num_input_channels": 1}
    torch.manual_seed(0)
    model = PatchTSMixerForPrediction(PatchTSMixerConfig(**sizes, **lengths))
    forecaster(model, shared, steps=600).save_pretrained(out)


def forecaster(model: Any, shared: Path, steps: int) -> Any:
    """Trained on windows of the loads, each standardised by its own past."""
    rows = _hours(shared / "data" / "ett")[: 12 * _MONTH]
    names = [name for name in rows[0] if name not in ("date", _OIL)]
    values = torch.tensor([[float(row[name]) for name in names] for row in rows]).T
    windows = values.unfold(-1, _CONTEXT + _HORIZON, 1).flatten(0, 1)
    return trained(model, steps, lambda drawn: _forecast(model, windows[drawn(len(windows))]))


def _forecast(model: Any, window: torch.Tensor) -> torch.Tensor:
    past, future = window[..., None].split([_CONTEXT, _HORIZON], dim=1)
    outputs = model(past_values=past)
    return ((outputs.prediction_outputs - future) / outputs.scale).square().mean()


def _hours(source: Path) -> list[dict[str, str]]:
    with (source / "ETTh1.csv").open(encoding="utf8") as file:
        return list(csv.DictReader(file))


# Pre-training


def trained(model: Any, steps: int, loss: Any, batch: int = 64, lr: float = 1e-3) -> Any:
    """`steps` of AdamW with a rate that falls to nothing; `loss` is given what draws a batch's
    places of n, the same for the same seed."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> torch.Tensor:
        return torch.randint(n, (batch,), generator=generator)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(drawn).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


_OF_HOURS = ("--task-arg", "season=24", "--task-arg", "stride=6")
DATA: dict[str, Make] = {"oil": oil}
MODELS: dict[str, Make] = {"patchtst": patchtst, "patchtsmixer": patchtsmixer}
ROWS = {
    "oil": Row("time-series-forecasting", "patchtst", "oil", options=_OF_HOURS),
    "oil-mixer": Row("time-series-forecasting", "patchtsmixer", "oil", options=_OF_HOURS),
}
