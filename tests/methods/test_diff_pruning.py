"""Diff pruning's masks: drawn in training, deterministic at evaluation, sparse at the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import record
from trimtab.core.delta import Delta


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))


def attached(method: trimtab.DiffPruning) -> tuple[nn.Module, list[Delta]]:
    model = base()
    adapter = trimtab.attach(model, method, ["0", "2"])
    return model, adapter.members


def changes(model: nn.Module) -> Tensor:
    members = record(model).adapter(None).members
    return torch.cat([d.method.delta(d.values(torch.float32)).flatten() for d in members]).detach()


def train(model: nn.Module, steps: int, total: int, first: int = 1) -> None:
    optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=1e-2)
    x, y = torch.randn(64, 20), torch.randn(64, 10)
    for step in range(first, first + steps):
        loss = nn.functional.mse_loss(model(x), y) + trimtab.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        trimtab.after_backward(model, step, total)
        optimizer.step()


@pytest.mark.parametrize("groups", ["none", "matrix", "row"])
def test_sparse_after_the_last_step(groups: str) -> None:
    model, _ = attached(trimtab.DiffPruning(budget=0.1, groups=groups))
    train(model.train(), 20, 20)
    for mode in (True, False):  # no mask is drawn any more
        model.train(mode)
        assert int((changes(model) != 0).sum()) == round(0.1 * 900)
    weights = torch.cat([model[i].base.weight.flatten().clone() for i in (0, 2)])
    trimtab.merge(model)
    merged = torch.cat([model[i].base.weight.flatten() for i in (0, 2)])
    assert int((merged != weights).sum()) == round(0.1 * 900)


def test_what_is_kept_is_the_largest() -> None:
    model, members = attached(trimtab.DiffPruning(budget=0.05))
    with torch.no_grad():
        for delta in members:
            delta.tensors()["delta"].normal_()
            delta.tensors()["a"].normal_(std=2)
    before = changes(model.eval())
    trimtab.after_backward(model, 7, 7)
    after = changes(model)
    kept = after != 0
    assert int(kept.sum()) == 45
    assert torch.equal(after[kept], before[kept])
    assert before[kept].abs().min() > before[~kept].abs().max()


def test_refining_trains_what_was_kept() -> None:
    model, _ = attached(trimtab.DiffPruning(budget=0.1, refine=0.5))
    train(model.train(), 10, 20)
    kept, values = changes(model) != 0, changes(model)
    assert int(kept.sum()) == 90
    train(model, 10, 20, first=11)
    after = changes(model)
    assert torch.equal(after != 0, kept)
    assert (after[kept] != values[kept]).all()


def test_masks_are_drawn_in_training_only() -> None:
    model, (first, *_) = attached(trimtab.DiffPruning())
    with torch.no_grad():
        first.tensors()["a"].zero_()
    method = first.method
    assert isinstance(method, trimtab.DiffPruning)
    model.train()
    drawn = torch.stack([method.mask(first.values(torch.float32)) for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    # At a = 0 s is uniform, and s (r - l) + l lies in (-1.5, 1.5).
    for value, share in ((0, 1 / 2), (1, 1 / 6)):
        assert abs(float((drawn == value).float().mean()) - share) < 0.01
    assert abs(float(drawn.detach().mean()) - 1 / 3) < 0.01
    model.eval()
    with torch.no_grad():
        first.tensors()["a"].fill_(torch.tensor(0.75).logit())
    torch.testing.assert_close(method.mask(first.values(torch.float32)), torch.full((30, 20), 0.75))


@pytest.mark.parametrize(("groups", "factor"), [("none", 1.0), ("matrix", 0.8), ("row", 0.8)])
def test_the_penalty_is_the_expected_norm(groups: str, factor: float) -> None:
    """The share of entries whose drawn mask is not 0, weighted."""
    model, members = attached(trimtab.DiffPruning(l0=0.01, groups=groups))
    with torch.no_grad():
        for delta in members:
            delta.tensors()["a"].fill_(0.5)
            if groups != "none":
                delta.tensors()["g"].fill_(torch.tensor(0.8).logit())
    expected = 0.01 * 900 * torch.tensor(0.5).sigmoid() * factor
    torch.testing.assert_close(trimtab.penalty(model), expected)
    if groups != "matrix":
        model.train()
        method, p = members[0].method, members[0].values(torch.float32)
        assert isinstance(method, trimtab.DiffPruning)
        share = torch.stack([(method.mask(p) != 0).float().mean() for _ in range(300)]).mean()
        assert abs(float(share) - float(torch.tensor(0.5).sigmoid()) * factor) < 0.01


def test_merging_in_training_mode_writes_no_drawn_mask() -> None:
    model, members = attached(trimtab.DiffPruning())
    with torch.no_grad():
        for delta in members:
            delta.tensors()["delta"].normal_()
            delta.tensors()["a"].fill_(1)
    x = torch.randn(3, 20)
    expected = model.eval()(x)
    model.train()
    trimtab.merge(model)
    torch.testing.assert_close(model(x), expected)
    trimtab.unmerge(model)
    assert members[0].training
