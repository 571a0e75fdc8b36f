"""What a run chooses by measurement, unless it is told: attention, parts of a batch side by side,
processes that make batches. The dtype is chosen before the model is read (`session`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.training import penalty
from trimtab.data.kinds import KINDS
from trimtab.evaluate.predict import precision
from trimtab.kernels import attention
from trimtab.tune import demands, hardware, replicas
from trimtab.tune.session import Session

_NEAR = 0.05  # of the logits: what bf16 may do to them
_NOTICED = 0.05  # of a step: what making a batch may take of it


@torch.no_grad()
def _agreeing(session: Session, names: Sequence[str], batch: Mapping[str, Any]) -> list[str]:
    """Those under which the model gives what it gives under the first: some models hand their
    attention what only the function that they were written with heeds."""
    model = session.model
    found: dict[str, list[Tensor]] = {}
    training = model.training
    for name in names:
        try:
            hardware.take_attention(model, name)
            found[name] = _given(session.task.loss(model.eval(), batch)[1])
        except (InputError, ValueError, RuntimeError, AttributeError, TypeError):
            continue
    model.train(training)
    first = next(iter(found.values()), [])
    agreeing = [name for name, one in found.items() if one and _close(one, first)]
    return agreeing or [*(found or names)][:1]


def _given(outputs: Any) -> list[Tensor]:
    """All that a model gave: of a detector scores and boxes, of a reader starts and ends."""
    if isinstance(outputs, Tensor):
        return [outputs.float()]
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    tensors = (one for name, one in sorted(named.items()) if name != "loss")
    return [one.float() for one in tensors if isinstance(one, Tensor) and one.is_floating_point()]


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Each by itself: small boxes do not hide behind large scores."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and bool((one - other).norm() <= _NEAR * other.norm())
        for one, other in zip(found, expected, strict=True)
    )


def choose_attention(
    session: Session, batch: Mapping[str, Tensor], step: Callable[[], object]
) -> None:
    """Pin the fastest implementation of attention for this model, batch and machine."""
    if session.first is None:  # a model without a choice of attention
        return
    if session.config.attention != "auto":
        if session.config.attention != session.first:
            hardware.take_attention(session.model, session.config.attention)
        return
    names = ["eager"]
    if getattr(session.model, "_supports_sdpa", False):
        names += ["sdpa", *([attention.offer()] if hardware.device().type == "cpu" else [])]
    names = _agreeing(session, names, batch)
    chosen, took = hardware.choose_attention(session.model, names, step)
    hardware.take_attention(session.model, chosen)
    session.config.attention = chosen
    session.config.measured = {**session.config.measured, "attention_ms": took}


def loss(session: Session) -> replicas.Loss:
    """The task's loss of a model on a batch with its labels, with what the laws add to it."""

    def of(model: nn.Module, batch: replicas.Batch) -> Tensor:
        device = next(model.parameters()).device
        with precision(device, session.config.autocast):
            return session.task.loss(model, batch)[0] + penalty(model)

    return of


def choose_replicas(session: Session, batch: Mapping[str, Tensor]) -> None:
    """Pin how many parts of a batch are computed side by side. A teacher is asked once for all of
    it, what a schedule changes stands in one model, and gradients of a whole base are large."""
    config = session.config
    if config.replicas is not None:
        return
    alone = (
        config.selects
        or config.recipe is not None
        or demands.pruned(config)
        or session.task.by_token
    )
    count, took = (1, {}) if alone else replicas.choose(session.model, batch, loss(session))
    config.replicas = count
    config.measured = {**config.measured, "replicas_ms": took}


def choose_workers(
    session: Session, examples: Sequence[Mapping[str, Any]], step: Callable[[], object]
) -> None:
    """Pin how many processes make batches beside training: none where that takes next to nothing
    of a step, as it does of texts; else as many as keep up with it, and a core is left for it."""
    config = session.config
    if config.workers is not None:
        return
    config.workers = 0
    slow = any(KINDS[column.kind].slow for column in session.task.columns)
    if not slow and session.augmented is None:
        return
    calls = {"batch": lambda: session.made(examples), "step": step}
    took = hardware.measure(calls, rounds=3)
    if (share := took["batch"] / took["step"]) > _NOTICED:
        config.workers = min(math.ceil(share), max(1, (os.cpu_count() or 1) - 1))
    config.measured = {**config.measured, "workers_ms": took}
