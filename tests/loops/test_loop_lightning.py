"""Lightning: a LightningModule around an adapted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import trimtab

pytestmark = [  # of Lightning's own making
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Storyteller(lightning.LightningModule):
    def __init__(self, kind: kinds.Kind, seed: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.model = kind.adapted(seed).train()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(trimtab.parameters(self.model), lr=self.kind.method.learning_rate)


def fit(module: Storyteller, folder: Path, epochs: int, **options: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(kinds.rows(), batch_size=4), **options)
    return trainer


def test_it_learns_and_changes_nothing_but_the_adapter(kind: kinds.Kind, tmp_path: Path) -> None:
    module = Storyteller(kind)
    before = kinds.mean_loss(module.model)
    fit(module, tmp_path, epochs=2)
    assert kinds.mean_loss(module.model) < before - 0.01
    kinds.assert_only_the_adapter_trained(kind, module.model)
    kinds.assert_saved_is_the_same(kind, module.model, tmp_path / "adapter")


def test_it_resumes_to_the_same_result(kind: kinds.Kind, tmp_path: Path) -> None:
    whole = Storyteller(kind)
    fit(whole, tmp_path, epochs=2)

    half = Storyteller(kind)
    fit(half, tmp_path, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Storyteller(kind, seed=1)
    fit(resumed, tmp_path, epochs=2, ckpt_path=tmp_path / "half.ckpt")
    kinds.assert_equal(resumed.model.state_dict(), whole.model.state_dict())


class Scheduled(Storyteller):
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        total = self.trainer.estimated_stepping_batches
        trimtab.after_backward(self.model, self.trainer.global_step + 1, total)


def test_a_schedule_runs_to_its_end(tmp_path: Path) -> None:
    module = Scheduled(kinds.ADALORA)
    fit(module, tmp_path, epochs=2)
    kinds.assert_pruned(module.model)
