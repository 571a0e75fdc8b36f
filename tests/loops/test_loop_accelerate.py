"""Accelerate: prepare, accumulate, save_state, load_state."""

from __future__ import annotations

from pathlib import Path

import kinds
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import trimtab


class Run:
    def __init__(self, kind: kinds.Kind, seed: int = 0) -> None:
        self.step, self.total = 0, 8
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = kind.adapted(seed)
        optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=kind.method.learning_rate)
        data = DataLoader(kinds.rows(), batch_size=2)
        self.model, self.optimizer, self.data = self.accelerator.prepare(model, optimizer, data)

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for batch in self.data:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(self.model(**batch).loss)
                    if self.accelerator.sync_gradients:
                        self.step += 1
                        trimtab.after_backward(self.model, self.step, self.total)
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    def bare(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)


def test_it_learns_and_changes_nothing_but_the_adapter(kind: kinds.Kind, tmp_path: Path) -> None:
    run = Run(kind)
    before = kinds.mean_loss(run.model)
    run.train(epochs=2)
    assert kinds.mean_loss(run.model) < before - 0.01
    kinds.assert_only_the_adapter_trained(kind, run.bare())
    kinds.assert_saved_is_the_same(kind, run.model, tmp_path)


def test_a_saved_state_goes_on_to_the_same_result(kind: kinds.Kind, tmp_path: Path) -> None:
    whole = Run(kind)
    whole.train(epochs=1)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(epochs=1)

    resumed = Run(kind, seed=1)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(epochs=1)
    kinds.assert_equal(resumed.bare().state_dict(), whole.bare().state_dict())


def test_a_schedule_runs_to_its_end() -> None:
    run = Run(kinds.ADALORA)
    run.train(epochs=2)
    assert run.step == run.total
    kinds.assert_pruned(run.bare())
