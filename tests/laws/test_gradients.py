"""Law 2: once its parameters change the adapted model differs; gradients reach exactly those that
the delta trains, and nothing else."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values


def changes_the_output(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    before = cases.logits(model, batch)
    cases.perturb(cases.attach(model, method))
    cases.assert_differs(cases.logits(model, batch), before)


def gradients_reach_what_trains(method: Method, architecture: cases.Architecture) -> None:
    model = architecture.model()
    adapter = cases.attach(model, method)
    cases.perturb(adapter)
    cases.loss(model, architecture.batch()).backward()
    trained = {id(parameter) for parameter in adapter.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), name
            assert not _speaks(name) or parameter.grad.abs().max() > 0, f"{name}'s gradient is zero"
        else:
            assert parameter.grad is None, f"a gradient reaches {name}"
            assert not parameter.requires_grad, name


def _speaks(name: str) -> bool:
    """A shift of every key by the same vector leaves the softmax over keys as it is."""
    return not (".key." in name and name.endswith((".bias", ".c")))


@cases.pairs()
def test_differs_after_a_change(method: Method, architecture: cases.Architecture) -> None:
    changes_the_output(method, architecture)


@cases.pairs()
def test_gradients_reach_what_trains(method: Method, architecture: cases.Architecture) -> None:
    gradients_reach_what_trains(method, architecture)


@cases.pairs()
def test_parameters_are_the_adapters(method: Method, architecture: cases.Architecture) -> None:
    """What an optimizer is given is what asks for gradients, no more and no less."""
    model = architecture.model()
    cases.attach(model, method)
    asking = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in trimtab.parameters(model)} == asking


class Deaf(trimtab.LoRA):
    """Its parameters never reach the output."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return 0 * super().matvec(p, x)


class Cut(trimtab.LoRA):
    """One of its parameters gets no gradient."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return x @ p.A.detach().T @ p.B.T


class Leaking(trimtab.LoRA):
    """The base's weight is trained along."""

    def forward(self, p: Values, x: Tensor, inner: Any, call: Any) -> Tensor:
        inner.weight.requires_grad_(True)
        return super().forward(p, x, inner, call)


def test_controls() -> None:
    llama = cases.by_name("llama")
    with pytest.raises(AssertionError):
        changes_the_output(Deaf(), llama)
    with pytest.raises(AssertionError, match="no gradient reaches"):
        gradients_reach_what_trains(Cut(), llama)
    with pytest.raises(AssertionError, match="a gradient reaches"):
        gradients_reach_what_trains(Leaking(), llama)
    assert torch.is_grad_enabled()
