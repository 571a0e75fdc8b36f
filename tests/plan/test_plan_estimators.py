"""What estimators promise of a site is what happens there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trimtab import BitFit, LNTuning, LoRA, attach
from trimtab.core.errors import InputError
from trimtab.plan import ESTIMATORS, candidates, measure
from trimtab.plan.candidates import at_rank
from trimtab.plan.sketch import Sketch


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 7), nn.LayerNorm(7)
        self.second, self.head = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.norm(self.first(x)))).mean(1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def model() -> Small:
    small = Small().double().float()
    with torch.no_grad():  # gains that are not all one
        small.norm.weight.uniform_(0.5, 2)
        small.norm.bias.uniform_(-1, 1)
    return small


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3, 5), torch.randint(0, 3, (4,))) for _ in range(6)]


def mean(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([loss(model, batch) for batch in batches]).mean()


def test_a_sketch_of_a_small_matrix_is_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    sketch, G = Sketch(9, 6, 3, generator), torch.zeros(9, 6)
    for _ in range(4):
        x, g = torch.randn(5, 6), torch.randn(5, 9)
        sketch.take(x, g)
        G += g.mT @ x
    U, S, V = sketch.triplets()
    torch.testing.assert_close(S, torch.linalg.svdvals(G), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(U @ torch.diag(S) @ V, G, rtol=1e-4, atol=1e-4)


def test_a_sketch_of_a_large_matrix_has_its_leading_values() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(200, 300), torch.randn(200, 150)
    scale = 0.6 ** torch.arange(200.0)
    sketch = Sketch(300, 150, 8, generator)
    sketch.take(right * scale[:, None], left)
    exact = torch.linalg.svdvals(left.mT @ (right * scale[:, None]))[:8]
    torch.testing.assert_close(sketch.triplets()[1][:8], exact, rtol=0.02, atol=0)
    assert sketch.Y.numel() + sketch.Z.numel() < 300 * 150 / 3


@pytest.mark.parametrize("method", [LoRA(rank=1), BitFit(), LNTuning()], ids=lambda m: m.name)
def test_the_gradient_that_is_not_formed_is_the_gradient(
    method: LoRA | BitFit | LNTuning, model: Small, batches: list[tuple[Tensor, Tensor]]
) -> None:
    found = candidates(model, [method], None if method.name != "lora" else ["first", "second"], 16)
    gains = measure(model, found, batches, ESTIMATORS["gradient"], loss=loss)
    mean(model, batches).backward()
    for one, gain in zip(found, gains, strict=True):
        module = model.get_submodule(one.site.name)
        held = {
            "map": [module.weight],
            "shift": [module.bias],
            "gain": [module.weight, module.bias],
        }
        exact = sum(float(p.grad.square().sum()) for p in held[one.view])
        assert float(gain.sum()) == pytest.approx(exact, rel=1e-3)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_tiny_step_gains_what_was_promised(
    rank: int, model: Small, batches: list[tuple[Tensor, Tensor]]
) -> None:
    """Along the leading triplets of the gradient, of gradient descent and of a fixed size."""
    found = candidates(model, [LoRA(rank=1)], ["second"], 16)
    promised = {
        name: float(measure(model, found, batches, ESTIMATORS[name], loss=loss)[0][:rank].sum())
        for name in ("gradient", "nuclear")
    }
    model = model.double()
    batches = [(x.double(), y) for x, y in batches]
    before = mean(model, batches)
    (G,) = torch.autograd.grad(before, [model.second.weight])
    U, S, V = torch.linalg.svd(G)
    for name, size in (("gradient", S), ("nuclear", torch.ones_like(S))):
        moved, step = copy.deepcopy(model), 1e-4
        change = U[:, :rank] @ torch.diag(size[:rank]) @ V[:rank]
        moved.second.weight.data -= step * change
        fallen = (before - mean(moved, batches)).item() / step
        assert fallen == pytest.approx(promised[name], rel=2e-2)


def test_what_one_half_promises_is_measured_on_the_other(
    model: Small, batches: list[tuple[Tensor, Tensor]]
) -> None:
    found = candidates(model, [LoRA(rank=1)], ["first", "second"], 16)
    held_out = measure(model, found, batches, ESTIMATORS["held-out"], loss=loss)
    gradients = []
    for half in (batches[::2], batches[1::2]):
        weights = [model.first.weight, model.second.weight]
        gradients.append(torch.autograd.grad(mean(model, half), weights))
    for gains, A, B in zip(held_out, *gradients, strict=True):
        (U, S, V), (L, T, R) = torch.linalg.svd(A, False), torch.linalg.svd(B, False)
        agreed = S * (U.mT @ B @ V.mT).diag() + T * (L.mT @ A @ R.mT).diag()
        exact = (agreed / 2).clamp(min=0).sort(descending=True).values
        torch.testing.assert_close(gains[: len(exact)], exact, rtol=1e-3, atol=1e-8)


def test_fisher_information_is_that_of_single_examples(
    model: Small, batches: list[tuple[Tensor, Tensor]]
) -> None:
    found = candidates(model, [LoRA(rank=1), BitFit()], ["second"], 2)
    gains = measure(model, found, batches, ESTIMATORS["fisher"], loss=loss)
    exact = {"map": 0.0, "shift": 0.0}
    for x, y in batches:
        for i in range(len(x)):
            weights = [model.second.weight, model.second.bias]
            value = loss(model, (x[i : i + 1], y[i : i + 1]))
            for view, one in zip(exact, torch.autograd.grad(value, weights), strict=True):
                exact[view] += float(one.square().sum()) / 24
    for one, gain in zip(found, gains, strict=True):
        if one.site.name == "second":
            assert float(gain[0]) / one.costs[0] == pytest.approx(exact[one.view], rel=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_tells_falling_gains_and_the_same_again(
    name: str, model: Small, batches: list[tuple[Tensor, Tensor]]
) -> None:
    found = candidates(model, [LoRA(rank=1)], ["first", "second"], 4)
    first, again = (measure(model, found, batches, ESTIMATORS[name], loss=loss) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
        assert one.shape == (4,)
        assert (one >= 0).all()
        assert (one.diff() <= 1e-9 + 1e-6 * one[0]).all()
        assert one[0] > 0


def test_what_is_not_called_is_named(model: Small, batches: list[tuple[Tensor, Tensor]]) -> None:
    model.idle = nn.Linear(2, 2)
    found = candidates(model, [LoRA(rank=1)], ["second", "idle"], 1)
    with pytest.raises(InputError, match="'idle' is not called"):
        measure(model, found, batches, ESTIMATORS["gradient"], loss=loss)


def test_costs_are_what_the_adapter_then_has(model: Small) -> None:
    for method in (LoRA(rank=1), BitFit(), LNTuning()):
        fits = ["first", "second"] if method.name == "lora" else None
        for one in candidates(copy.deepcopy(model), [method], fits, 3):
            fresh = copy.deepcopy(model)
            rank = len(one.costs)
            adapter = attach(fresh, at_rank(one.method, rank), one.site.name)
            assert sum(p.numel() for p in adapter.parameters()) == sum(one.costs)
