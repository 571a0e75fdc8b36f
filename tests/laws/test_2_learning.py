"""Law 2: changed parameters change the output; gradients reach exactly what trains."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import suite
import torch
from broken import Deaf
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values
from trimtab.testing import ARCHITECTURES, hold


@suite.held(2)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


@pytest.mark.parametrize("method", cases.METHODS, ids=lambda method: method.name)
def test_every_method_acts_somewhere(method: Method) -> None:
    """Or all its other tests would be skipped."""
    hold(method, suite.LAWS["change"], ARCHITECTURES[0], ARCHITECTURES)


class Cut(trimtab.LoRA):
    """One of its parameters gets no gradient."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return x @ p.A.detach().T @ p.B.T


class Starved(trimtab.LoRA):
    """One of its parameters gets a gradient that is always zero."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return x @ (p.A.detach() + 0 * p.A).T @ p.B.T


class Muffled(trimtab.LoRA):
    """Wide sites learn nothing, though their parameters matter."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        y = super().matvec(p, x)
        return y + 0 * (y - y.detach()) if y.shape[-1] < 64 else y.detach() + 0 * y


class Leaking(trimtab.LoRA):
    """The base's weight is trained along."""

    def forward(self, p: Values, x: Tensor, inner: Any, *call: Any) -> Tensor:
        inner.weight.requires_grad_(True)
        return super().forward(p, x, inner, *call)


@pytest.mark.parametrize("name", ["llama", "whisper"])
def test_controls(name: str) -> None:
    suite.breaks(Deaf(), "change", "nothing differs", on=name)
    suite.breaks(Cut(), "gradients", "no gradient reaches", on=name)
    suite.breaks(Starved(), "gradients", "['A'] is zero at every site", on=name)
    suite.breaks(Muffled(), "gradients", "and it matters", on=name)
    suite.breaks(Leaking(), "gradients", "a gradient reaches", on=name)
    assert torch.is_grad_enabled()
