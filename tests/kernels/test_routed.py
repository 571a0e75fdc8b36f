"""Routed LoRA adapters in two products a site, against the law that runs each by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core import call, kernel
from trimtab.core.delta import Delta
from trimtab.kernels import cpu, routed

RANKS = {"a": 2, "b": 5, "c": 3}
ROUTES: list[Sequence[str | None]] = [
    ["a", "b", "c", "a", "b", "b"],
    ["a", None, "b", None, "c", "a"],
    ["b"] * 6,
    ["c", "a", "b"],  # two rows each, as beams are
    [None, None, "a"],
]


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows with every site at which adapters ran together."""
    return follow(kernel, "find_router")


def adapted(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9)).to(dtype)
    for name, rank in RANKS.items():
        target = ["0"] if name == "c" else ["0", "2"]  # one of them acts at one site alone
        adapter = trimtab.attach(model, trimtab.LoRA(rank=rank, alpha=rank), target, name=name)
        cases.perturb(adapter, by=0.3)
    trimtab.activate(model, trimtab.Route(*RANKS))
    return model


def run(model: nn.Module, x: Tensor, route: Sequence[str | None]) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    with trimtab.given(model, route=route):
        y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    of = [x, *trimtab.parameters(model)]
    found = torch.autograd.grad((y * y * weights).sum(), of, allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(of, found, strict=True)]
    return [y.detach(), *gradients]


@pytest.mark.parametrize("shape", [(6, 4, 12), (6, 12)], ids=["3-D", "2-D"])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_it_equals_each_by_itself(
    route: Sequence[str | None], shape: tuple[int, ...], calls: list[object]
) -> None:
    model, x = adapted(), torch.randn(shape)
    together = run(model, x, route)
    assert len(calls) == 2
    with trimtab.kernels.disabled():
        alone = run(model, x, route)
    assert len(calls) == 2
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_in_bf16_masters_and_gradients_stay_in_fp32(calls: list[object]) -> None:
    model, x = adapted(torch.bfloat16), torch.randn(6, 4, 12).bfloat16()
    together = run(model, x, ROUTES[0])
    assert calls
    assert {tensor.dtype for tensor in together[2:]} == {torch.float32}
    with trimtab.kernels.disabled():
        exact = run(model.double(), x.double(), ROUTES[0])
    for one, other in zip(together, exact, strict=True):
        near = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0)
        assert near > 0.999


@torch.no_grad()
def test_a_stack_that_is_kept_follows_its_factors() -> None:
    """Through changes in place, of memory, of the route and of the adapters themselves."""
    model, x = adapted().requires_grad_(False), torch.randn(6, 4, 12)
    parameters = dict(model.named_parameters())
    first = next(p for name, p in parameters.items() if ".a." in name and name.endswith("B"))

    def output(route: Sequence[str | None]) -> Tensor:
        with trimtab.given(model, route=route):
            return model(x)

    def check(route: Sequence[str | None]) -> Tensor:
        y = output(route)
        with trimtab.kernels.disabled():
            torch.testing.assert_close(y, output(route), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output(route), y, rtol=0, atol=0)
        return y

    before = check(ROUTES[0])
    first.mul_(2)
    assert not torch.equal(check(ROUTES[0]), before)
    first.data = first.data.clone() / 2
    torch.testing.assert_close(check(ROUTES[0]), before)
    check(ROUTES[1])
    trimtab.detach(model, "b")
    adapter = trimtab.attach(model, trimtab.LoRA(rank=4), ["0", "2"], name="b")
    cases.perturb(adapter)
    trimtab.activate(model, trimtab.Route(*RANKS))
    model.requires_grad_(False)
    check(ROUTES[0])


def test_it_stands_back_where_one_adapter_is_of_another_method(calls: list[object]) -> None:
    model, x = adapted(), torch.randn(6, 12)
    cases.perturb(trimtab.attach(model, trimtab.IA3(), ["0", "2"], name="d"))
    trimtab.activate(model, trimtab.Route(*RANKS, "d"))
    route = ["a", "d", "b", "a", "d", "c"]
    found = run(model, x, route)
    assert calls == []
    with trimtab.kernels.disabled():
        for one, other in zip(found, run(model, x, route), strict=True):
            torch.testing.assert_close(one, other)


def test_an_adapter_that_no_one_has_is_an_error() -> None:
    model = adapted()
    with pytest.raises(trimtab.InputError, match="'z', which is none of"):
        run(model, torch.randn(2, 12), ["a", "z"])


@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_on_whole_models(architecture: cases.Architecture, calls: list[object]) -> None:
    model, batch = architecture.model(), architecture.batch()
    for name, rank in RANKS.items():
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=rank), name=name))
    trimtab.activate(model, trimtab.Route(*RANKS))
    examples = len(next(iter(batch.values())))
    with trimtab.given(model, route=([*RANKS, None] * examples)[:examples]):
        together = cases.logits(model, batch)
        assert calls or architecture.name == "gpt2"
        with trimtab.kernels.disabled():
            torch.testing.assert_close(cases.logits(model, batch), together, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not cpu.has("routed"), reason="no compiled kernels, or no AVX-512 for bf16")
@pytest.mark.parametrize("tokens", [1, 5, 130])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_the_compiled_pass_is_near_the_exact_law(
    route: Sequence[str | None], tokens: int, follow: Callable[[Any, str], list[Any]]
) -> None:
    """In bf16, where nothing trains; after a step it takes the new factors."""
    ran = follow(routed, "_added")
    model = nn.Sequential(nn.Linear(20, 40)).bfloat16()
    rank_of = {"a": 8, "b": 3, "c": 1}
    for name, rank in rank_of.items():
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=rank), "0", name=name), by=0.3)
    trimtab.activate(model, trimtab.Route("a", "b", "c"))
    x = torch.randn(6, tokens, 20).bfloat16()
    twin = copy.deepcopy(model).float()
    for _ in range(2):
        with torch.no_grad(), trimtab.given(model, route=route):
            y = model(x).float()
        with torch.no_grad(), trimtab.given(twin, route=route), trimtab.kernels.disabled():
            expected = twin(x.float())
        assert (y - expected).norm() <= 0.01 * expected.norm()
        with torch.no_grad():
            for one in (model, twin):
                for parameter in trimtab.parameters(one):
                    parameter.mul_(-0.5)
    assert bool(ran) == (max(rank_of[name] for name in route if name) == 8)


@torch.no_grad()
def test_an_adapter_in_the_place_of_another_is_seen() -> None:
    """Even where its tensors lie at the very addresses and count as many changes."""
    model, x = adapted(), torch.randn(6, 4, 12)
    for _ in range(5):
        trimtab.detach(model, "b")
        adapter = trimtab.attach(model, trimtab.LoRA(rank=5), ["0", "2"], name="b")
        cases.perturb(adapter, by=0.3)
        trimtab.activate(model, trimtab.Route(*RANKS))
        with trimtab.given(model, route=ROUTES[0]):
            y = model(x)
            with trimtab.kernels.disabled():
                torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


def test_who_is_in_the_batch_is_found_once_a_call(follow: Callable[[Any, str], list[Any]]) -> None:
    """However many are registered: at a site nothing goes over all of them."""
    model = adapted()
    for number in range(20):
        trimtab.attach(model, trimtab.LoRA(rank=2), ["0", "2"], name=f"more{number}")
    names = [*RANKS, *(f"more{number}" for number in range(20))]
    trimtab.activate(model, trimtab.Route(*names))
    asked = follow(call, "rows")
    stacked = follow(routed, "_stacked")
    with torch.no_grad(), trimtab.given(model, route=ROUTES[0]):
        model(torch.randn(6, 4, 12))
    assert (len(asked), len(stacked)) == (1, 2)


compiled = pytest.mark.skipif(not cpu.has("routed"), reason="no compiled kernels, or no AVX-512")


@compiled
@pytest.mark.parametrize("outputs", [40, 2048], ids=["", "rows of one cache set"])
@pytest.mark.parametrize("anchored", [False, True], ids=["", "anchored"])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 130])
def test_a_single_adapter_takes_the_compiled_pass(
    rows: int, anchored: bool, outputs: int, follow: Callable[[Any, str], list[Any]]
) -> None:
    """It is near the exact law, follows its factors, and leaves training and fp32 alone."""
    ran = follow(routed, "_added")
    model = nn.Sequential(nn.Linear(20, outputs)).bfloat16()
    method = trimtab.LoRA(rank=8, anchored=anchored)
    cases.perturb(trimtab.attach(model, method, "0"), by=0.3)
    twin, x = copy.deepcopy(model).float(), torch.randn(rows, 20).bfloat16()
    factors = [p for one in (model, twin) for p in trimtab.parameters(one)]
    model.requires_grad_(False)
    for _ in range(2):
        with torch.no_grad():
            y, expected = model(x).float(), twin(x.float())
        assert (y - expected).norm() <= 0.01 * expected.norm()
        with torch.no_grad():
            for factor in factors:
                factor.mul_(-0.5)
    assert len(ran) == 2 * ((rows >= 32) + (rows % 32 > 0))
    ran.clear()
    for factor in factors:
        factor.requires_grad_()
    model(x).float().sum().backward()
    assert not ran


STEPS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "fused": lambda of: torch.optim.AdamW(of, lr=0.1, fused=True),
    "fused SGD": lambda of: torch.optim.SGD(of, lr=0.1, fused=True),
    "foreach": lambda of: torch.optim.AdamW(of, lr=0.1, foreach=True),
    "by hand": lambda of: ByHand(of),
}


class ByHand:
    """Writes where no version tells of it."""

    def __init__(self, of: list[nn.Parameter]) -> None:
        self.of = of

    def step(self) -> None:
        for parameter in self.of:
            parameter.data.mul_(-1.5)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("many", [False, True], ids=["alone", "mixed"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen between"])
def test_what_a_step_changed_is_seen_without_gradients(step: str, many: bool, frozen: bool) -> None:
    """Whoever writes into the factors, and however they were called before."""
    if frozen and step == "by hand":
        pytest.skip("frozen factors that are written into through .data are not followed")
    model, x = nn.Sequential(nn.Linear(20, 40)).bfloat16(), torch.randn(64, 20).bfloat16()
    for name in "ab":
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=8), "0", name=name), by=0.3)
    trimtab.activate(model, trimtab.Route("a", "b") if many else "a")
    trained = [p for name, p in model.named_parameters() if ".a." in name]

    def output() -> Tensor:
        with torch.no_grad(), trimtab.given(model, route=["a", "b"] * 32 if many else None):
            return model(x)

    optimizer = STEPS[step](trained)
    for _ in range(3):
        for parameter in trained:
            parameter.requires_grad_(not frozen)
        before = output()
        for parameter in trained:
            parameter.requires_grad_()
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for parameter in trained:
            parameter.requires_grad_(not frozen)
        after = output()
        with trimtab.kernels.disabled():
            expected = output().float()
        assert (after.float() - expected).norm() <= 0.02 * expected.norm()
        assert not torch.equal(before, after)


@compiled
@torch.no_grad()
def test_one_alone_and_many_mixed_keep_a_stack_each(
    follow: Callable[[Any, str], list[Any]],
) -> None:
    model, x = nn.Sequential(nn.Linear(20, 40)).bfloat16(), torch.randn(2, 20).bfloat16()
    for name in "ab":
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=8), "0", name=name))
    made = follow(routed, "_stack")
    for _ in range(3):
        trimtab.activate(model, "a")
        model.requires_grad_(False)
        model(x)
        trimtab.activate(model, trimtab.Route("a", "b"))
        model.requires_grad_(False)
        with trimtab.given(model, route=["a", "b"]):
            model(x)
    assert len(made) == 2


@torch.no_grad()
def test_a_stack_follows_methods_and_memory_that_is_taken_again() -> None:
    model, x = nn.Sequential(nn.Linear(20, 40)).bfloat16(), torch.randn(64, 20).bfloat16()
    adapter = trimtab.attach(model, trimtab.LoRA(rank=8, alpha=16), "0")
    cases.perturb(adapter, by=0.3)
    model.requires_grad_(False)

    def check() -> Tensor:
        y = model(x)
        with trimtab.kernels.disabled():
            expected = model(x).float()
        assert (y.float() - expected).norm() <= 0.02 * expected.norm()
        return y

    before = check()
    (delta,) = (module for module in model.modules() if isinstance(module, Delta))
    delta.become(trimtab.LoRA(rank=8, alpha=32))
    assert not torch.equal(check(), before)
    for _ in range(20):
        for _ in range(2):
            for factor in delta.parameters():
                factor.data = factor.data * -1.2
        check()


def test_factors_of_inference_mode_are_not_kept() -> None:
    with torch.inference_mode():
        model, x = nn.Sequential(nn.Linear(20, 40)).bfloat16(), torch.randn(64, 20).bfloat16()
        cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=8), "0"), by=0.3)
        model.requires_grad_(False)
        y = model(x)
        with trimtab.kernels.disabled():
            torch.testing.assert_close(y, model(x), rtol=0.1, atol=0.1)
