"""What a training loop asks of an adapted model: its parameters, their penalty, their schedule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from trimtab.core import sharded
from trimtab.core.adapter import Adapter, intact, record, unwrap
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError, StateError
from trimtab.core.method import Method, Values


@overload
def parameters(model: nn.Module) -> list[nn.Parameter]: ...
@overload
def parameters(model: nn.Module, lr: float) -> list[dict[str, Any]]: ...
def parameters(
    model: nn.Module, lr: float | None = None
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The parameters that train: what an optimizer gets.

    With `lr` they come in groups, each with its own learning rate: `lr` times what the method says,
    such as the `lr_ratio` of `LoRA`.
    """
    acting = list(record(model).acting())
    intact(model, acting)
    require_ready(model)
    found = [
        parameter
        for adapter in acting
        for parameter in adapter.parameters()
        if parameter.requires_grad
    ]
    still = [repr(one.name) for one in acting if not one.trainable]
    if still and not found:
        warnings.warn(
            f"nothing trains: {', '.join(still)} was loaded without trainable=True",
            stacklevel=2,
        )
    rates = {parameter: rate for one in acting for parameter, rate in one.rates().items()}
    if lr is not None:
        return grouped({"params": found, "lr": lr}, rates)
    if rates:
        warnings.warn(
            "a method here asks for several learning rates, and a plain list of parameters has "
            "one: give the optimizer trimtab.parameters(model, lr=…)",
            stacklevel=2,
        )
    return found


def grouped(group: Mapping[str, Any], rates: Mapping[nn.Parameter, float]) -> list[dict[str, Any]]:
    """An optimizer's group of parameters, as one group for each learning rate."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        by_rate.setdefault(rates.get(parameter, 1.0), []).append(parameter)
    return [{**group, "params": some, "lr": group["lr"] * rate} for rate, some in by_rate.items()]


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
        and (term := _penalty(delta)) is not None
    ]
    return torch.stack(terms).sum() if terms else None


def _penalty(delta: Delta) -> Tensor | None:
    return delta.method.penalty(sharded.gathered(delta.values(torch.float32)))


@torch.no_grad()
def after_backward(model: nn.Module, step: int, total: int) -> None:
    """Schedules and pruning of the active adapters: after the backward pass of step `step` of
    `total` (the first is 1), before the optimizer's, while gradients are there.
    """
    if not 1 <= step <= total:
        raise InputError(f"step counts from 1 to total, and is {step} of {total}")
    require_ready(model)
    switch = record(model).switch
    switch.scheduled |= set(switch.active)
    for adapter in record(model).acting():
        for method, sites in _live_by_method(adapter).items():
            if not scheduled(method):
                continue
            pieces = sharded.Pieces()
            method.after_backward(pieces.gathered(sites), step, total)
            pieces.put_back()


def require_ready(model: nn.Module) -> None:
    """Raise where an active adapter waits for something before it can be trained, and say what: an
    optimizer would otherwise train what nobody has chosen."""
    for adapter in record(model).acting():
        for method in adapter.methods if adapter.trainable else ():
            if (what := method.unready()) is not None:
                raise StateError(f"adapter {adapter.name!r}, {method.name}: {what}")


def scheduled(method: Method) -> bool:
    """Whether the method changes in the course of training, by its own `after_backward`."""
    return type(method).after_backward is not Method.after_backward


def warn_unscheduled(model: nn.Module, adapter: Adapter) -> None:
    """An adapter with a schedule that was trained without it is not what its method promises."""
    switch = record(model).switch
    names = sorted({method.name for _, method in adapter.entries if scheduled(method)})
    if names and adapter.name in switch.trained - switch.scheduled:
        warnings.warn(
            f"adapter {adapter.name!r} was trained, and trimtab.after_backward was never called: "
            f"the schedule of {', '.join(names)} did not run, and nothing was pruned. Call it "
            "before each step of the optimizer (for the Trainer of transformers: "
            "callbacks=[trimtab.tune.schedule.Schedule()])",
            stacklevel=3,
        )


def warn_unready(model: nn.Module, adapter: Adapter) -> None:
    """An adapter that was trained before it was ready is not what its method promises either."""
    reasons = sorted({f"{m.name}: {what}" for m in adapter.methods if (what := m.unready())})
    if reasons and adapter.name in record(model).switch.trained:
        warnings.warn(
            f"adapter {adapter.name!r} was trained before it was ready: {'; '.join(reasons)}",
            stacklevel=3,
        )


def _live_by_method(adapter: Adapter) -> dict[Method, dict[str, Values]]:
    found: dict[Method, dict[str, Values]] = {}
    for site, delta in adapter.deltas():
        if adapter.trainable:
            found.setdefault(delta.method, {})[site] = delta.live()
    return found
