"""A run is held to the data, and the labels, that it was made on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate
from trimtab.tasks.models import resolve
from trimtab.tasks.text_classification import TextClassification
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]
Finished = tuple[Path, dict[str, Any]]


def test_data_that_changed_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Rows that were trained on could now be among the held out."""
    config = settings(tmp_path / "run", max_steps=2, eval_every=2, save_every=1)
    data = tmp_path / Path(config.data).name
    shutil.copy(config.data, data)
    config.data = str(data)
    tune(config, quiet=True)
    assert evaluate(config.out, None, "test")["value"]["n"] > 0
    lines = data.read_text(encoding="utf8").splitlines(keepends=True)
    data.write_text("".join([*lines, lines[-1].replace(",", " again,", 1)]), encoding="utf8")
    with pytest.raises(InputError, match="is not what this run was made on"):
        evaluate(config.out, None, "test")
    with pytest.raises(InputError, match="is not what this run was made on"):
        tune(config, resume=True, quiet=True)


def test_a_new_run_does_not_go_on_from_stale_checkpoints(
    settings: Settings, finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match="holds a run already"):
        tune(settings(tmp_path / "run"), quiet=True)


@pytest.mark.parametrize("own", [["positive", "negative"], ["spam", "ham"]], ids="-".join)
def test_a_checkpoint_s_own_labels(own: list[str], tmp_path: Path) -> None:
    """The same names keep the checkpoint's order and its head; others mean a new head."""
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve("minilm"), id2label=dict(enumerate(own)), num_labels=2
    )
    model.save_pretrained(tmp_path)
    task = TextClassification()
    task.processor("minilm").save_pretrained(tmp_path)
    labels = task.order(str(tmp_path), ["negative", "positive"])
    assert labels == (own if "positive" in own else ["negative", "positive"])
    import torch

    _, fresh = task.model(str(tmp_path), labels, task.processor("minilm"), torch.float32, False)
    assert fresh == ([] if "positive" in own else ["classifier.bias", "classifier.weight"])
