"""A loop in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import kinds
import pytest
import torch
from torch import nn

import trimtab


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = kinds.batches()[step % 4]
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_of(kind: kinds.Kind, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trimtab.parameters(model), lr=kind.method.learning_rate)


def test_it_learns_and_changes_nothing_but_the_adapter(kind: kinds.Kind, tmp_path: Path) -> None:
    model = kind.adapted()
    before = kinds.mean_loss(model)
    train(model, optimizer_of(kind, model), range(8))
    assert kinds.mean_loss(model) < before - 0.01
    kinds.assert_only_the_adapter_trained(kind, model)
    kinds.assert_saved_is_the_same(kind, model, tmp_path)


def test_a_checkpoint_goes_on_to_the_same_result(kind: kinds.Kind, tmp_path: Path) -> None:
    whole = kind.adapted()
    optimizer = optimizer_of(kind, whole)
    train(whole, optimizer, range(4))
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")
    train(whole, optimizer, range(4, 8))

    resumed = kind.adapted(seed=1)
    optimizer = optimizer_of(kind, resumed)
    weights, moments = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, range(4, 8))
    kinds.assert_equal(resumed.state_dict(), whole.state_dict())


def scheduled(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The loss is computed outside the model, and takes up the penalty itself."""
    for step in steps:
        batch = dict(kinds.batches()[step % 4])
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        (loss + trimtab.penalty(model)).backward()
        trimtab.after_backward(model, step + 1, 8)
        optimizer.step()
        optimizer.zero_grad()


def test_a_schedule_runs_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = kinds.ADALORA.adapted()
    optimizer = optimizer_of(kinds.ADALORA, whole)
    scheduled(whole, optimizer, range(4))
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")
    scheduled(whole, optimizer, range(4, 8))
    kinds.assert_pruned(whole)
    kinds.assert_saved_is_the_same(kinds.ADALORA, whole, tmp_path / "adapter")

    resumed = kinds.ADALORA.adapted(seed=1)
    optimizer = optimizer_of(kinds.ADALORA, resumed)
    weights, moments = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    scheduled(resumed, optimizer, range(4, 8))
    kinds.assert_equal(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", ["adalora", "diff-pruning"])
def test_saving_tells_of_a_schedule_that_never_ran(name: str, tmp_path: Path) -> None:
    kind = kinds.Kind(name)
    model = kind.adapted().train()
    trimtab.save(model, tmp_path)  # nothing was trained
    train(model, optimizer_of(kind, model), range(1))
    with pytest.warns(UserWarning, match=f"after_backward was never called.*{name}"):
        trimtab.save(model, tmp_path)
    trimtab.load(model, tmp_path, name="other")
    trimtab.save(model, tmp_path / "other", name="other")  # it was not trained here
    trimtab.activate(model, "default")
    model(**kinds.batch()).loss.backward()
    trimtab.after_backward(model, 1, 8)
    trimtab.save(model, tmp_path, name="default")
