"""Law 6, second half: gradient checkpointing of either kind gives the gradients of none."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from trimtab.core.method import Method
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    NotHere,
    Trial,
    assert_near,
    ensure,
    gradients,
)


def checkpoint(model: Any, *, reentrant: bool) -> list[Any]:
    """Turn checkpointing on; the list grows with every block that is checkpointed."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise NotHere(f"{type(model).__name__} does not support gradient checkpointing")
    modern = getattr(model, "activation_checkpointing_enable", None)  # its name from 5.23 on
    (modern or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    calls: list[Any] = []
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            inner = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = functools.partial(_counted, inner, calls)
    return calls


def _counted(inner: Any, calls: list[Any], *args: Any, **kwargs: Any) -> Any:
    calls.append(args)
    return inner(*args, **kwargs)


def checkpointed_loss(trial: Trial) -> Tensor:
    """What trains the head alone leaves nothing to train in a block, of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
        return trial.loss()


def checkpointing(method: Method, architecture: Architecture) -> None:
    """Blocks computed a second time in the backward pass give the same gradients."""
    _checkpointed(method, architecture, reentrant=False)


def reentrant_checkpointing(method: Method, architecture: Architecture) -> None:
    """So do blocks that re-enter autograd, which trains only what follows from their input."""
    _checkpointed(method, architecture, reentrant=True)


def _checkpointed(method: Method, architecture: Architecture, *, reentrant: bool) -> None:
    trial = Trial(method, architecture)
    trial.model.train()
    trial.perturbed()
    torch.manual_seed(0)  # a law may draw numbers
    trial.loss().backward()
    expected = gradients(trial.model)
    trial.model.zero_grad()
    calls = checkpoint(trial.model, reentrant=reentrant)
    torch.manual_seed(0)
    checkpointed_loss(trial).backward()
    if not calls:
        raise NotHere("no block of the model is checkpointed")
    found = gradients(trial.model)
    ensure(
        found.keys() == expected.keys(),
        f"with checkpointing other parameters have gradients: "
        f"{sorted(found.keys() ^ expected.keys())[:4]}",
    )
    for name, gradient in found.items():
        assert_near(gradient, expected[name], f"the gradient of {name}, checkpointed")
