"""Law 2: once its parameters change the adapted model differs; gradients reach exactly those that
train, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from trimtab.core.adapter import Adapter
from trimtab.core.method import Method, Selection
from trimtab.core.training import parameters
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    Trial,
    assert_differs,
    ensure,
)


def changes_the_output(method: Method, architecture: Architecture) -> None:
    """Other parameters give another output."""
    trial = Trial(method, architecture)
    adapter = trial.attach()
    ensure(adapter.parameters(), "it is attached and has no parameters")
    before = trial.outputs()
    trial.perturbed("second")
    assert_differs(trial.outputs(), before, "the outputs after the parameters changed")


def gradients_reach_what_trains(method: Method, architecture: Architecture) -> None:
    """Every trained parameter gets its gradient, and no other parameter gets one."""
    trial = Trial(method, architecture)
    unused = _unused(trial) if isinstance(method, Selection) else set()
    adapter = trial.perturbed()
    given = parameters(trial.model)
    trained = {id(parameter) for parameter in given}
    ensure(len(trained) == len(given), "an optimizer would get a parameter twice")
    own = {id(parameter) for parameter in adapter.parameters()}
    if getattr(method, "trains_parts", False):
        ensure(own <= trained, "`parameters` leaves out some of the adapter's")
    else:
        ensure(own == trained, "`parameters` and the adapter disagree on what trains")
    trial.model.train()
    trial.loss().backward()
    trial.model.eval()
    for name, parameter in trial.model.named_parameters():
        if id(parameter) not in trained:
            ensure(parameter.grad is None, f"a gradient reaches {name}")
            ensure(not parameter.requires_grad, f"{name} asks for a gradient")
        elif name not in unused:
            ensure(parameter.grad is not None, f"no gradient reaches {name}")
            ensure(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
    if not isinstance(method, Selection):
        _speaks(trial, adapter)


def _unused(trial: Trial) -> set[str]:
    """The base's parameters that this batch, or the model itself, keeps gradients from."""
    model = trial.architecture.model()
    trial.loss(model).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def _speaks(trial: Trial, adapter: Adapter) -> None:
    """Each kind of tensor has a gradient somewhere, and where one is zero the output does not
    depend on it: the same shift of every key, for one, leaves attention as it is.
    """
    named = {id(p): n for n, p in trial.model.named_parameters(remove_duplicate=False)}
    heard: dict[str, bool] = {}
    silent: list[nn.Parameter] = []
    for parameter in adapter.parameters():
        leaf = named[id(parameter)].rpartition(".")[2]
        speaks = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        heard[leaf] = heard.get(leaf, False) or speaks
        if not speaks or parameter.grad.abs().max() < 1e-7:  # type: ignore[union-attr]
            silent.append(parameter)
    deaf = [leaf for leaf, speaks in heard.items() if not speaks]
    ensure(not deaf, f"the gradient of {deaf} is zero at every site")
    before = trial.outputs()
    for parameter in silent:
        kept = parameter.detach().clone()
        with torch.no_grad():
            # A small step: one that is large changes what is chosen, such as CoDA's tokens.
            parameter.add_(1e-3 * torch.randn_like(parameter))
        off = (trial.outputs() - before).abs().max().item()
        with torch.no_grad():
            parameter.copy_(kept)
        ensure(off < 1e-5, f"the gradient of {named[id(parameter)]} is zero, and it matters")
