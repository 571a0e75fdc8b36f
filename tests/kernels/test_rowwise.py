"""Norms, activations and gates in one pass: what they say they are, found by what they compute, in
training alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab
from trimtab.kernels import cpu, rowwise
from trimtab.kernels.rowwise import (
    Activation,
    ActivationFunction,
    Gated,
    Norm,
    NormFunction,
    normed,
)
from trimtab.testing.architectures import ARCHITECTURES, Architecture

pytestmark = pytest.mark.skipif(not cpu.has("rowwise"), reason="no compiled kernels, or no AVX-512")

HALF = 2**-8  # what rounding to bf16 costs at most
ACTIVATIONS: list[Callable[..., Tensor]] = [
    F.silu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
]
SHAPES = [(5, 384), (3, 7, 100), (1, 3), (2, 15), (64, 1025)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def halves(*shape: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(*shape)).bfloat16()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs, for an arbitrary dy."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    y = function(*inputs)
    dy = torch.linspace(-1, 1, y.numel()).cos().view(y.shape).bfloat16().to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def near(found: list[Tensor], exact: list[Tensor], by: float = HALF) -> None:
    """Each number within a rounding of its own, and of a thousandth of the largest."""
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        allowed = by * other.abs() + 1e-3 * other.abs().max()
        assert ((one.float() - other).abs() <= allowed).all()


@each_shape
@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_norm(shape: tuple[int, ...], centred: bool, offset: float) -> None:
    x, w = halves(*shape) + offset, nn.Parameter(halves(shape[-1]), requires_grad=False)
    b = nn.Parameter(halves(shape[-1]), requires_grad=False) if centred else None
    found = gradients(lambda x: NormFunction.apply(x, w, b, 1e-5, centred), x)
    near(found, gradients(lambda x: normed(x, w, b, 1e-5, centred), x.float()))


@each_shape
@pytest.mark.parametrize("kind", range(3), ids=["silu", "gelu", "gelu by tanh"])
@pytest.mark.parametrize("gated", [False, True], ids=["alone", "gated"])
def test_an_activation(shape: tuple[int, ...], kind: int, gated: bool) -> None:
    f = ACTIVATIONS[kind]
    a, b = halves(*shape, spread=3), halves(*shape)
    inputs = (a, b) if gated else (a,)
    found = gradients(lambda a, b=None: ActivationFunction.apply(a, b, kind), *inputs)
    law = (lambda a, b: f(a) * b) if gated else f
    near(found, gradients(law, *(one.float() for one in inputs)))


@pytest.mark.parametrize("kind", range(3))
def test_far_out_an_activation_is_what_it_tends_to(kind: int) -> None:
    far = torch.tensor([-3e38, -1e4, -60, -20, 20, 60, 1e4, 3e38, torch.nan]).bfloat16()
    y, slope = gradients(lambda a: ActivationFunction.apply(a, None, kind), far)
    assert not y[-1].isfinite()
    assert torch.equal(y[4:8], far[4:8])
    assert (y[:4].abs() < 1e-6).all()
    assert slope[:8].isfinite().all()


def llama() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2,
        )
    )  # fmt: skip
    cases.perturb(trimtab.attach(model.bfloat16(), trimtab.LoRA(rank=2)), by=0.05)
    return model.train()


IDS = torch.randint(99, (2, 12), generator=torch.Generator().manual_seed(0))


def run(model: nn.Module) -> Tensor:
    """The gradient of what trains."""
    trained = [one for one in model.parameters() if one.requires_grad]
    loss = model(input_ids=IDS, labels=IDS).loss
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    return follow(NormFunction, "apply")


def test_a_model_trains_as_before(calls: list[Any]) -> None:
    model = llama()
    exact = run(copy.deepcopy(model).float())
    plain = run(model)
    assert rowwise(model) == 5 + 2 + 2  # norms, activations, gated blocks
    found = run(model)
    assert len(calls) == 5
    assert not torch.equal(found, plain)  # it was another computation
    assert (found - exact).norm() <= 1.2 * (plain - exact).norm()  # and no worse
    assert rowwise(model, on=False) == 0
    assert torch.equal(run(model), plain)


def test_what_is_evaluated_or_switched_off_is_as_given(calls: list[Any]) -> None:
    model = llama()
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        with trimtab.kernels.disabled():
            law = model.train()(input_ids=IDS).logits
        rowwise(model)
        assert torch.equal(model.eval()(input_ids=IDS).logits, expected)
        with trimtab.kernels.disabled():
            assert torch.equal(model.train()(input_ids=IDS).logits, law)
    assert not calls


def test_a_norm_that_trains_is_left(calls: list[Any]) -> None:
    norm = nn.LayerNorm(32).bfloat16()
    assert rowwise(norm) == 1
    norm(halves(4, 32)).sum().backward()
    assert norm.weight.grad is not None
    assert not calls


def test_modules_are_known_by_what_they_compute() -> None:
    class PlusOneRMSNorm(nn.Module):  # as Gemma has it
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.rand(16)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return normed(x, 1 + self.weight, None, self.eps, False)

    class MyRMSNorm(PlusOneRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return normed(x, self.weight, None, self.eps, False)

    kinds = [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.Tanh(), nn.Softmax(-1)]
    model = nn.ModuleList([PlusOneRMSNorm(), MyRMSNorm(), nn.LayerNorm(16), nn.RMSNorm(16), *kinds])
    rowwise(model)
    found = [type(one.__dict__.get("forward")) for one in model]
    none = type(None)
    assert found == [none, Norm, Norm, none, Activation, Activation, Activation, *[none] * 3]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: one.name)
def test_no_model_computes_something_else(architecture: Architecture) -> None:
    model = architecture.model().bfloat16().train().requires_grad_(False)
    batch = {
        key: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in architecture.batch().items()
    }

    def outputs() -> Tensor:
        torch.manual_seed(0)
        return architecture.outputs(model, batch).float()

    plain, exact = outputs(), architecture.model().train()
    torch.manual_seed(0)
    law = architecture.outputs(exact, architecture.batch())
    assert rowwise(model)
    assert (outputs() - law).norm() <= 1.5 * (plain - law).norm() + 5e-3 * law.norm()


def test_copies_and_pickles_are_their_own() -> None:
    model = llama()
    rowwise(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin), run(model))
        gates = [one for one in twin.modules() if isinstance(one.__dict__.get("forward"), Gated)]
        assert len(gates) == 2
        assert all(one.__dict__["forward"].module is one for one in gates)


def test_a_second_derivative_is_that_of_the_law() -> None:
    x, w = halves(3, 32).requires_grad_(), nn.Parameter(halves(32), requires_grad=False)

    def second(function: Callable[[Tensor], Tensor]) -> Tensor:
        (slope,) = torch.autograd.grad(function(x).float().square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.float().square().sum(), x)[0].float()

    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (
            lambda x: NormFunction.apply(x, w, None, 1e-5, False),
            lambda x: normed(x, w, None, 1e-5, False),
        ),
        (lambda x: ActivationFunction.apply(x, None, 0), F.silu),
        (lambda x: ActivationFunction.apply(x, x, 1), lambda x: F.gelu(x) * x),
    ]
    for found, law in pairs:
        exact = second(law)
        assert (second(found) - exact).norm() <= 0.03 * exact.norm()
