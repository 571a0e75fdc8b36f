"""The Trainer of transformers, as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import pytest
import torch
import transformers as hf

from trimtab import AdaLoRA
from trimtab.tune.schedule import Schedule

FURTHER = [*kinds.METHODS, kinds.Kind("compacter"), kinds.Kind("prompt")]


def trainer(kind: kinds.Kind, folder: Path, *, seed: int = 0, **options: Any) -> hf.Trainer:
    arguments = {
        "learning_rate": kind.method.learning_rate,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "save_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **options,
    }
    eval_dataset = kinds.rows() if "eval_strategy" in options else None
    return hf.Trainer(
        model=kind.adapted(seed),
        args=hf.TrainingArguments(str(folder), **arguments),
        train_dataset=kinds.rows(),
        eval_dataset=eval_dataset,
        callbacks=[Schedule()],
    )


@pytest.mark.parametrize("kind", FURTHER, ids=str)
def test_it_learns_and_changes_nothing_but_the_adapter(kind: kinds.Kind, tmp_path: Path) -> None:
    run = trainer(kind, tmp_path / "run")
    before = kinds.mean_loss(run.model)
    run.train()
    assert kinds.mean_loss(run.model) < before - 0.01
    kinds.assert_only_the_adapter_trained(kind, run.model)
    kinds.assert_saved_is_the_same(kind, run.model, tmp_path / "adapter")


@pytest.mark.parametrize("kind", [*FURTHER, kinds.ADALORA], ids=str)
def test_it_resumes_to_the_same_result(
    kind: kinds.Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trainer(kind, tmp_path / "run")
    whole.train()
    resumed = trainer(kind, tmp_path / "again", seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    kinds.assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert ".deltas." not in caplog.text  # no key of theirs is missing, none unexpected


def test_it_loads_the_best_checkpoint_at_the_end(kind: kinds.Kind, tmp_path: Path) -> None:
    run = trainer(
        kind,
        tmp_path,
        learning_rate=1.0,  # it diverges, so that an early checkpoint is the best
        max_steps=6,
        save_steps=1,
        eval_steps=1,
        eval_strategy="steps",
        load_best_model_at_end=True,
        warmup_steps=5,
    )
    run.train()
    best = min(row["eval_loss"] for row in run.state.log_history if "eval_loss" in row)
    assert run.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


def test_activation_checkpointing_trains_what_plain_training_trains(
    kind: kinds.Kind, tmp_path: Path
) -> None:
    plain = trainer(kind, tmp_path / "plain", save_strategy="no")
    plain.train()
    for reentrant in (True, False):
        lean = trainer(kind, tmp_path / "lean", save_strategy="no")
        lean.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        lean.train()
        for name, tensor in kinds.delta_state(lean.model).items():
            torch.testing.assert_close(tensor, kinds.delta_state(plain.model)[name])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_schedule_runs_once_in_each_step(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, own = [], AdaLoRA.after_backward

    def after_backward(method: AdaLoRA, sites: Any, step: int, total: int) -> None:
        assert any(p.P.grad.any() for p in sites.values())
        seen.append((step, total))
        own(method, sites, step, total)

    monkeypatch.setattr(AdaLoRA, "after_backward", after_backward)
    run = trainer(kinds.ADALORA, tmp_path / "run", gradient_accumulation_steps=accumulation)
    run.train()
    assert seen == [(step, 8) for step in range(1, 9)]
    kinds.assert_pruned(run.model)
    kinds.assert_saved_is_the_same(kinds.ADALORA, run.model, tmp_path / "adapter")


def test_a_column_of_tasks_reaches_the_model(tmp_path: Path) -> None:
    kind = kinds.Kind("conditional")
    rows = [{**row, "task_ids": i % 2} for i, row in enumerate(kinds.rows())]
    run = trainer(kind, tmp_path / "run", remove_unused_columns=False)
    run.train_dataset = rows
    run.train()
    kinds.assert_only_the_adapter_trained(kind, run.model)
