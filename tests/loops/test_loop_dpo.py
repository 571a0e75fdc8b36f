"""TRL's DPOTrainer, as it is: the reference is the base alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import kinds
import pytest
import trl
from torch import nn

import trimtab

# TRL's own defaults, checkpointing among them, go by a name that transformers is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")


def trainer(
    model: nn.Module, folder: Path, rate: float, reference: nn.Module | None, **options: Any
) -> trl.DPOTrainer:
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(
            str(folder),
            learning_rate=rate,
            per_device_train_batch_size=4,
            max_steps=6,
            save_steps=3,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            **options,
        ),
        train_dataset=datasets.Dataset.from_list(kinds.preferences()),
        processing_class=kinds.tokenizer(),
    )


def shared(kind: kinds.Kind, folder: Path, seed: int = 0) -> trl.DPOTrainer:
    model = kind.adapted(seed)
    return trainer(model, folder, kind.method.learning_rate, trimtab.Reference(model))


def losses(run: trl.DPOTrainer) -> list[float]:
    return [row["loss"] for row in run.state.log_history if "loss" in row]


@pytest.mark.parametrize("headless", [*kinds.HEADLESS, kinds.Kind("vera")], ids=str)
def test_it_learns_and_changes_nothing_but_the_adapter(
    headless: kinds.Kind, tmp_path: Path
) -> None:
    run = shared(headless, tmp_path / "run")
    run.train()
    assert losses(run)[0] == pytest.approx(0.6931, abs=1e-4)  # policy and reference agree
    assert losses(run)[-1] < losses(run)[0] - 1e-3
    kinds.assert_only_the_adapter_trained(headless, run.model)
    kinds.assert_saved_is_the_same(headless, run.model, tmp_path / "adapter")


def test_the_reference_is_the_base(headless: kinds.Kind, tmp_path: Path) -> None:
    """Against a second copy of the base, against the one that shares the model's weights, and
    against log-probabilities computed beforehand: the same steps."""
    rate = headless.method.learning_rate
    copied = trainer(headless.adapted(), tmp_path, rate, headless.base())
    beforehand = trainer(headless.adapted(), tmp_path, rate, None, precompute_ref_log_probs=True)
    expected = shared(headless, tmp_path)
    expected.train()
    for run in (copied, beforehand):
        run.train()
        assert losses(run) == pytest.approx(losses(expected), abs=1e-5)


def test_without_a_reference_trl_reads_the_base_again(tmp_path: Path) -> None:
    kind = kinds.METHODS[0]
    run = trainer(kind.adapted(), tmp_path, kind.method.learning_rate, None)
    kinds.assert_equal(run.ref_model.state_dict(), kind.base().state_dict())


def test_it_resumes_to_the_same_result(headless: kinds.Kind, tmp_path: Path) -> None:
    whole = shared(headless, tmp_path / "run")
    whole.train()
    resumed = shared(headless, tmp_path / "again", seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    kinds.assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_another_adapter_can_be_the_reference(tmp_path: Path) -> None:
    """Preference learning after supervised learning: the policy starts as a copy of the adapter
    that the reference keeps."""
    model = kinds.stories()
    first = trimtab.attach(model, trimtab.LoRA(), name="sft")
    kinds.move(first)
    trimtab.save(model, tmp_path / "sft", name="sft")
    trimtab.load(model, tmp_path / "sft", name="dpo", trainable=True)
    before = copy.deepcopy(first.tensors())
    run = trainer(model, tmp_path / "run", 1e-3, trimtab.Reference(model, "sft"))
    run.train()
    assert losses(run)[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses(run)[-1] < losses(run)[0] - 1e-3
    kinds.assert_equal(first.tensors(), before)
