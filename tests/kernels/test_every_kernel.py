"""Every fused implementation against the law that it accelerates, on one linear map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core import kernel, registry
from trimtab.core.call import Call
from trimtab.core.method import Method, Param, Transform, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Site

METHODS = [m.readied() for m in cases.METHODS if type(m) in kernel._kernels or m.dense]
IN_HALF = [method for method in METHODS if type(method) in kernel._kernels]
Found = list[Tensor]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows with every use of a kernel."""
    return follow(kernel, "find")


def adapted(method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(48, 36)).to(dtype).train()
    cases.perturb(trimtab.attach(model, method, "0"), by=0.1)
    return model


def run(model: nn.Module, x: Tensor, again: bool = False) -> Found:
    """The output, the gradients of x and of all parameters; with `again` those of these gradients.
    Laws that draw draw the same."""
    torch.manual_seed(0)
    x = x.detach().clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (y * y * weights).sum() + trimtab.penalty(model)
    of = [x, *trimtab.parameters(model)]
    found = list(torch.autograd.grad(loss, of, create_graph=again))
    if again:
        total = sum((gradient.square().sum() for gradient in found), torch.zeros((), dtype=y.dtype))
        found += torch.autograd.grad(total, of)
    return [y.detach(), *found]


def without_kernels(call: Callable[[], Found]) -> Found:
    with trimtab.kernels.disabled():
        return call()


@each_method
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_it_equals_its_law(method: Method, again: bool, calls: list[object]) -> None:
    """In double precision, to rounding; second derivatives too."""
    model, x = adapted(method, torch.float64), torch.randn(2, 25, 48, dtype=torch.float64)
    for parameter in trimtab.parameters(model):
        parameter.data = parameter.data.double()
    fused = run(model, x, again)
    assert len(calls) == 1
    for one, other in zip(fused, without_kernels(lambda: run(model, x, again)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", IN_HALF, ids=lambda method: method.name)
def test_it_is_near_the_exact_law_in_bf16(method: Method, calls: list[object]) -> None:
    """As the law itself in bf16 is: masters and their gradients stay in fp32."""
    model, x = adapted(method, torch.bfloat16).eval(), torch.randn(2, 40, 48).bfloat16()
    fused = run(model, x)
    assert len(calls) == 1
    assert {tensor.dtype for tensor in fused[2:]} == {torch.float32}
    exact = without_kernels(lambda: run(model.double(), x.double()))
    for one, other in zip(fused, exact, strict=True):
        near = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0)
        assert near > 0.998, tuple(one.shape)


@each_method
def test_it_starts_at_the_base(method: Method, calls: list[object]) -> None:
    """Where its law does, to the bit, and in half precision where it runs there."""
    dtype = torch.bfloat16 if method in IN_HALF else torch.float32
    model, x = nn.Sequential(nn.Linear(48, 36)).to(dtype), torch.randn(50, 48).to(dtype)
    base = model(x)
    trimtab.attach(model, method, "0")
    assert torch.equal(model(x), base) or method.starts_at_base is not None
    assert len(calls) == 1


@each_method
def test_a_frozen_adapter_passes_the_gradient_on(method: Method, calls: list[object]) -> None:
    """As it must beneath another adapter, or another layer's."""
    model, x = adapted(method), torch.randn(5, 48)
    for parameter in trimtab.parameters(model):
        parameter.requires_grad_(False)

    def slope() -> Found:
        z = x.clone().requires_grad_()
        model(z).square().sum().backward()
        return [z.grad] if z.grad is not None else []

    found = slope()
    assert len(calls) == 1
    torch.testing.assert_close(found, without_kernels(slope), rtol=1e-4, atol=1e-5)


@pytest.fixture
def unregistered() -> Iterator[None]:
    before = dict(registry._methods)
    yield
    registry._methods.clear()
    registry._methods.update(before)


@pytest.mark.usefixtures("unregistered")
def test_a_dense_law_of_ones_own(calls: list[object]) -> None:
    """Without an option `dropout`, and with a bias."""

    @dataclass(frozen=True, kw_only=True)
    class Rows(Transform):
        name = "rows-and-bias"
        dense = True

        def init(self, site: Site) -> dict[str, Param]:
            each = {"g": torch.ones(site.out_features), "c": torch.zeros(site.out_features)}
            return {name: Param(one) for name, one in each.items()}

        def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return p.g[:, None] * W, p.c if b is None else b + p.c

    model, x = adapted(Rows()), torch.randn(5, 48)
    fused = run(model, x)
    assert len(calls) == 1
    for one, other in zip(fused, without_kernels(lambda: run(model, x)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unregistered")
def test_another_forward_beneath_a_dense_law_is_heeded(calls: list[object]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Doubled(trimtab.LoHa):
        name = "doubled"

        def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
            return inner(x) + 2 * self.matvec(p, x)

    run(adapted(Doubled()), torch.randn(5, 48))
    assert calls == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_it_stands_back_in_half_precision_where_small_changes_would_vanish(
    method: Method, calls: list[object]
) -> None:
    model = adapted(method, torch.bfloat16).eval()
    model(torch.randn(50, 48).bfloat16())
    assert len(calls) == (method in IN_HALF)
