"""Running a model over examples: the one way in which every reported number is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.tasks.task import Outputs, stacked

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
Ask = Callable[[nn.Module, Mapping[str, Any]], Outputs]
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
def outputs(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    collate: Collate,
    ask: Ask,
    *,
    batch_size: int,
    autocast: bool,
    follow: Follow = iter,
) -> Outputs:
    """What the model gives for each example, in their order. Sort them by length first: the same
    batches give the same numbers, bit for bit.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    out = []
    try:
        for batch in follow(batches(examples, batch_size)):
            inputs = on(collate(batch), device)
            with precision(device, autocast):
                out.append(ask(model, inputs))
    finally:
        model.train(training)
    return stacked(out)


def on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch where the model is."""
    return {key: _moved(one, device) for key, one in batch.items()}


def _moved(one: Any, device: torch.device) -> Any:
    if isinstance(one, Tensor):
        return one.to(device)
    if isinstance(one, Mapping):
        return on(one, device)
    return [_moved(part, device) for part in one] if isinstance(one, list) else one
