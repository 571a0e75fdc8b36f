"""Running a model over examples: the one way in which every reported number is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
Follow = Callable[[Iterable[Any]], Iterable[Any]]
"""The same items in turn, while somebody may count them."""


def batches(examples: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def precision(device: torch.device, autocast: bool) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where asked for."""
    if autocast:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@torch.no_grad()
def logits(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    collate: Collate,
    *,
    batch_size: int,
    autocast: bool,
    follow: Follow = iter,
) -> np.ndarray:
    """The model's outputs (n, classes) in fp32, in the examples' order. Sort them by length first:
    the same batches give the same numbers, bit for bit.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    out = []
    try:
        for batch in follow(batches(examples, batch_size)):
            inputs = {k: v.to(device) for k, v in collate(batch).items() if k != "labels"}
            with precision(device, autocast):
                out.append(model(**inputs).logits.float().cpu())
    finally:
        model.train(training)
    return torch.cat(out).numpy()
