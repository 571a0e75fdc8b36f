"""What a training loop asks of an adapted model: its parameters, their penalty, their schedule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter, record, unwrap, whole
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Values


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train: what an optimizer gets."""
    acting = list(record(model).acting())
    whole(model, acting)
    return [
        parameter
        for adapter in acting
        for parameter in adapter.parameters()
        if parameter.requires_grad
    ]


def penalty(model: nn.Module) -> Tensor:
    """What the active adapters' laws add to the loss; 0 where they add nothing.

    A loss that the model computes itself, in training, has it already. One that is computed outside
    must take it up: `loss = criterion(model(x), y) + trimtab.penalty(model)`.
    """
    record(model).switch.owed = False
    found = penalties(model)
    if found is None:
        return torch.zeros((), device=next(unwrap(model).parameters()).device)
    return found


def penalties(model: nn.Module) -> Tensor | None:
    """The sum of the active laws' penalties, if any has one."""
    terms = [
        term
        for adapter in record(model).acting()
        for _, delta in adapter.deltas()
        if type(delta.method).penalty is not Method.penalty
        and (term := delta.method.penalty(delta.values(torch.float32))) is not None
    ]
    return torch.stack(terms).sum() if terms else None


@torch.no_grad()
def after_backward(model: nn.Module, step: int, total: int) -> None:
    """Schedules and pruning of the active adapters: after the backward pass of step `step` of
    `total` (the first is 1), before the optimizer's, while gradients are there.
    """
    if not 1 <= step <= total:
        raise InputError(f"step counts from 1 to total, and is {step} of {total}")
    for adapter in record(model).acting():
        for method, sites in _by_method(adapter).items():
            method.after_backward(sites, step, total)


def _by_method(adapter: Adapter) -> dict[Method, dict[str, Values]]:
    found: dict[Method, dict[str, Values]] = {}
    for site, delta in adapter.deltas():
        if adapter.trainable:
            found.setdefault(delta.method, {})[site] = delta.live()
    return found
