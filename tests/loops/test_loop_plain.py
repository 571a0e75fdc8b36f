"""A loop in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import kinds
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
