"""What orthogonal maps keep, and what the factors of a weight are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.method import Method
from trimtab.core.rotation import butterfly

ORTHOGONAL = {
    "boft": trimtab.BOFT(),
    "boft, four factors": trimtab.BOFT(block=2, factors=4),
    "boft, two of wide blocks": trimtab.BOFT(blocks=2, factors=2),
    "hra": trimtab.HRA(),
    "hra, odd": trimtab.HRA(rank=3),
    "hra, orthogonal": trimtab.HRA(rank=6, gram_schmidt=True),
}


def attached(method: Method, n: int = 16) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A square map with the method on it, its parameters moved from where they start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n, n)).eval()
    (_, delta), *_ = trimtab.attach(model, method, "0").deltas()
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            if name not in {"s", "alpha"}:
                parameter += 0.5 * torch.randn(parameter.shape)
    return model, delta.tensors()


def turn(model: nn.Sequential) -> Tensor:
    """R of W' = W Rᵀ."""
    W = model[0].weight.detach().clone()
    trimtab.merge(model)
    return torch.linalg.solve(W, model[0].weight.detach()).T


@pytest.mark.parametrize("method", ORTHOGONAL.values(), ids=list(ORTHOGONAL))
def test_the_angles_between_neurons_stay(method: Method) -> None:
    model, _ = attached(method)
    W = model[0].weight.detach().clone()
    trimtab.merge(model)
    new = model[0].weight.detach()
    assert not torch.allclose(new, W, atol=1e-2)
    torch.testing.assert_close(new @ new.T, W @ W.T, rtol=1e-4, atol=1e-5)


def test_a_butterfly_reaches_every_feature() -> None:
    """With 2^m halves of blocks and m factors each output depends on each input; with fewer factors
    on its share of them."""
    for factors, reach in ((1, 2), (2, 4), (3, 8), (4, 16)):
        D = 1 + torch.rand(factors, 8, 2, 2)  # nothing cancels
        for back in (False, True):
            R = butterfly(torch.eye(16), D, back)
            assert ((R != 0).sum(0) == reach).all()
            assert ((R != 0).sum(1) == reach).all()


def test_the_determinant_counts_the_reflections() -> None:
    for rank in (2, 3, 4, 5):
        R = turn(attached(trimtab.HRA(rank=rank))[0])
        torch.testing.assert_close(torch.linalg.det(R), torch.tensor((-1.0) ** rank))


def test_orthogonal_reflections_are_one_of_their_span() -> None:
    model, tensors = attached(trimtab.HRA(rank=5, gram_schmidt=True))
    R, Q = turn(model), torch.linalg.svd(tensors["U"].detach(), full_matrices=False).U
    torch.testing.assert_close(R @ Q, -Q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(R @ R, torch.eye(16), rtol=1e-4, atol=1e-4)


def test_the_penalty_is_how_far_directions_are_from_orthogonal() -> None:
    model, tensors = attached(trimtab.HRA(rank=4, orthogonality=0.3))
    angles = nn.functional.cosine_similarity(
        *torch.broadcast_tensors(tensors["U"].T[:, None], tensors["U"].T[None]), dim=-1
    )
    wanted = 0.3 * (angles - torch.eye(4)).square().sum()
    torch.testing.assert_close(trimtab.penalty(model), wanted)
    with torch.no_grad():
        tensors["U"].copy_(3 * torch.eye(16, 4))
    torch.testing.assert_close(trimtab.penalty(model), torch.tensor(0.0))


@pytest.mark.parametrize("group", [2, 8])
def test_one_angle_a_pair_keeps_lengths(group: int) -> None:
    model, _ = attached(trimtab.Road(group=group))
    x = torch.randn(5, 16)
    before = torch.linalg.vector_norm(model[0].base(x), dim=-1)
    torch.testing.assert_close(torch.linalg.vector_norm(model(x), dim=-1), before)


def test_blocks_left_out_are_of_one_factor() -> None:
    """In training, each block of one factor by chance, and none of what is merged."""
    method = trimtab.BOFT(block=2, factors=3, dropout=0.5)
    model, _ = attached(method, 8)
    whole, basis = model(torch.eye(8)), torch.eye(8)
    seen = {tuple(model.train()(basis).flatten().tolist()) for _ in range(200)}
    assert 3 * 6 < len(seen) <= 1 + 3 * (2**4 - 1)  # any of four blocks, in one of three factors
    (delta,) = [d for _, d in model._trimtab.adapter(None).deltas()]
    D = delta.method._turns(delta.values(torch.float32))
    kept = [(delta.method._dropped(D) != 0).any(-1).any(-1) for _ in range(400)]
    assert all(int((~one).any(1).sum()) <= 1 for one in kept)
    share = sum(int((~one).sum()) for one in kept) / (400 * 4)
    assert abs(share - 0.5) < 0.05
    trimtab.merge(model)
    torch.testing.assert_close(model(basis), whole)


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv"])
@pytest.mark.parametrize("residual", ["frozen", "dropped"])
def test_factors_start_at_the_best_of_their_rank(kind: str, residual: str) -> None:
    modules: dict[str, Any] = {
        "linear": nn.Linear(12, 9),
        "embedding": nn.Embedding(12, 9),
        "conv": nn.Conv2d(3, 9, 2),
    }
    model = nn.Sequential(modules[kind])
    W = (model[0].weight.T if kind == "embedding" else model[0].weight.flatten(1)).detach().clone()
    method = trimtab.Factor(rank=4, residual=residual)
    (_, delta), *_ = trimtab.attach(model, method, "0").deltas()
    U, V = delta.tensors()["U"].detach(), delta.tensors()["V"].detach()
    left, values, right = torch.linalg.svd(W, full_matrices=False)
    best = left[:, :4] * values[:4] @ right[:4]
    torch.testing.assert_close(U @ V, best)
    torch.testing.assert_close(U.T @ U, V @ V.T, rtol=1e-4, atol=1e-4)
    assert (method.starts_at_base is None) == (residual == "frozen")
    trimtab.merge(model)
    merged = model[0].weight.T if kind == "embedding" else model[0].weight.flatten(1)
    torch.testing.assert_close(merged, W if residual == "frozen" else best)


@pytest.mark.parametrize("energy", [0.2, 0.5, 0.9, 1.0])
def test_the_rank_that_holds_the_energy(energy: float) -> None:
    model, tensors = attached(trimtab.Factor(energy=energy))
    square = torch.linalg.svdvals(model[0].base.weight.detach()).square()
    r = tensors["U"].shape[1]
    assert square[:r].sum() >= energy * square.sum() * (1 - 1e-6)
    assert r == 1 or square[: r - 1].sum() < energy * square.sum()


def test_a_small_step_is_not_rounded_away() -> None:
    """In bf16 the factors themselves would hide a change of a thousandth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    W = model[0].weight.detach().clone()
    (_, delta), *_ = trimtab.attach(model, trimtab.Factor(rank=8), "0").deltas()
    with torch.no_grad():
        delta.U += 1e-4 * torch.randn(delta.U.shape)
        wanted = (delta.U - delta.U0) @ delta.V
    x = torch.eye(64).bfloat16()
    method, p = delta.method, delta.values(torch.bfloat16)
    change = method.affine(p, torch.zeros_like(W), None)[0]
    torch.testing.assert_close(change.float(), wanted, rtol=2e-2, atol=2e-6)
    torch.testing.assert_close(model(x).T, W, rtol=2e-2, atol=2e-3)


WRONG: dict[str, tuple[Any, str]] = {
    "no factor": (lambda: trimtab.BOFT(factors=0), "factors must be at least 1"),
    "a block of one": (lambda: trimtab.BOFT(block=1), "block must be at least 2"),
    "orthogonal twice": (
        lambda: trimtab.HRA(gram_schmidt=True, orthogonality=1.0),
        "orthogonality must be 0 with gram_schmidt",
    ),
    "all dropped": (lambda: trimtab.BOFT(dropout=1.0), r"dropout must lie in \[0, 1\)"),
    "no reflection": (lambda: trimtab.HRA(rank=0), "rank must be at least 1"),
    "three angles": (lambda: trimtab.Road(angles=3), "angles must be 1, 2 or 4"),
    "odd groups": (lambda: trimtab.Road(group=3), "group must be even"),
    "much energy": (lambda: trimtab.Factor(energy=1.5), "energy must lie in"),
    "another residual": (lambda: trimtab.Factor(residual="kept"), "be frozen or dropped"),
    "no room": (lambda: attached(trimtab.BOFT(factors=5)), "5 factors do not join its 4 blocks"),
    "no such blocks": (lambda: attached(trimtab.BOFT(blocks=3)), "do not fall into 3 blocks"),
    "too many": (
        lambda: attached(trimtab.HRA(rank=20, gram_schmidt=True)),
        "fewer than 20 features",
    ),
}


@pytest.mark.parametrize(("make", "match"), WRONG.values(), ids=list(WRONG))
def test_what_is_refused(make: Any, match: str) -> None:
    with pytest.raises((trimtab.InputError, trimtab.SiteNotFound), match=match):
        make()
