"""TRL's SFTTrainer, as it is."""

from __future__ import annotations

from pathlib import Path

import cases
import datasets
import kinds
import pytest
import trl

import trimtab

# TRL's own defaults, checkpointing among them, go by a name that transformers is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")


def trainer(kind: kinds.Kind, folder: Path, seed: int = 0) -> trl.SFTTrainer:
    return trl.SFTTrainer(
        model=kind.adapted(seed),
        args=trl.SFTConfig(
            str(folder),
            learning_rate=kind.method.learning_rate,
            per_device_train_batch_size=4,
            max_steps=8,
            save_steps=4,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.Dataset.from_list(kinds.tasks()),
        processing_class=kinds.tokenizer(),
    )


@pytest.mark.parametrize(
    "headless", [*kinds.HEADLESS, kinds.Kind("prefix"), kinds.Kind("houlsby")], ids=str
)
def test_it_learns_and_changes_nothing_but_the_adapter(
    headless: kinds.Kind, tmp_path: Path
) -> None:
    run = trainer(headless, tmp_path / "run")
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert sum(losses[-2:]) < sum(losses[:2])
    kinds.assert_only_the_adapter_trained(headless, run.model)
    kinds.assert_saved_is_the_same(headless, run.model, tmp_path / "adapter")


def test_it_resumes_to_the_same_result(headless: kinds.Kind, tmp_path: Path) -> None:
    whole = trainer(headless, tmp_path / "run")
    whole.train()
    resumed = trainer(headless, tmp_path / "again", seed=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    kinds.assert_equal(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "used-before"])
def test_an_adapter_on_the_output_layer_is_refused(tmp_path: Path, used_before: bool) -> None:
    """TRL multiplies by the output layer's weight itself: an adapter there would never train."""
    run = trainer(kinds.Kind("lora", train=("lm_head",)), tmp_path)
    if used_before:
        cases.logits(run.model, kinds.batch())
    with pytest.raises(trimtab.StateError, match=r"without calling .*(lm_head|output layer)"):
        run.train()
