"""A run that learns from a teacher: another run, or a trained model; what cannot teach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trimtab
from trimtab.core.errors import InputError
from trimtab.evaluate.run import open_run
from trimtab.recipes.distill import soft_targets
from trimtab.tune.config import Config
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

Settings = Callable[..., Config]


def distance(folder: Path, teacher: Any, rows: Any) -> float:
    """The divergence of a run's model from the teacher's outputs on these rows."""
    session = open_run(str(folder))
    ours = torch.from_numpy(session.outputs(session.encode(rows)))
    return soft_targets(ours, torch.from_numpy(teacher)).item()


@pytest.fixture(scope="module")
def taught(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path_factory: Any
) -> tuple[Path, dict[str, Any]]:
    """A student that follows its teacher alone."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("taught") / "run"
    given = {"recipe": "distill", "teacher": str(finished[0]), "recipe_arg": {"alpha": 1.0}}
    return out, tune(settings(out, seed=1, **given), quiet=True)


def test_a_student_comes_nearer_to_its_teacher(
    settings: Settings,
    taught: tuple[Path, dict[str, Any]],
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Nearer than one of the same seed that has the labels alone."""
    tune(settings(tmp_path / "alone", seed=1), quiet=True)
    session = open_run(str(finished[0]))
    rows = read_data(session.config).test
    teacher = session.outputs(session.encode(rows))
    near, far = (distance(one, teacher, rows) for one in (taught[0], tmp_path / "alone"))
    assert near < 0.7 * far
    assert any("taught by" in note for note in taught[1]["notes"])


def test_it_goes_on_with_its_teacher(taught: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(taught[0], copied)
    for part in ("adapter", "checkpoints/checkpoint-8", "checkpoints/best"):
        shutil.rmtree(copied / part)
    (copied / "metrics.json").unlink()
    found = tune(open_config(copied), resume=True, quiet=True)
    assert found["test"] == taught[1]["test"]
    assert open_config(copied).recipe_arg == {"alpha": 1.0}


def open_config(folder: Path) -> Config:
    from trimtab.tune.folder import Run

    return Run(folder).config()


def test_a_model_whose_labels_stand_in_another_order(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A folder of transformers teaches as the run that it was made of does."""
    from trimtab.tune import teacher
    from trimtab.tune.session import open_session

    session = open_run(str(finished[0]))
    rows = read_data(session.config).test
    expected = session.outputs(session.encode(rows))
    merged = session.model
    trimtab.merge(merged)
    trimtab.detach(merged, keep=True)
    with torch.no_grad():
        for tensor in merged.classifier.parameters():
            tensor.copy_(tensor.flip(0))
    turned = list(reversed(session.labels))
    merged.config.id2label = dict(enumerate(turned))
    merged.config.label2id = {label: i for i, label in enumerate(turned)}
    merged.save_pretrained(tmp_path / "model")
    session.processor.save_pretrained(tmp_path / "model")
    config = settings(tmp_path / "run", recipe="distill", teacher=str(tmp_path / "model"))
    student = open_session(config, session.labels)
    made = teacher.distiller(student)
    assert made is not None
    encoded = session.encode(rows)
    batch = session.collate(encoded.examples)
    batch.pop("labels")
    with torch.no_grad():
        found = made.teacher(**batch).logits.numpy()
    np.testing.assert_allclose(encoded.restore(found), expected, atol=1e-4)


def test_what_cannot_teach(
    settings: Settings, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = str(finished[0])
    for given, why in [
        ({"teacher": run}, "--recipe distill"),
        ({"recipe": "distill"}, "needs --teacher"),
        ({"recipe": "distill", "teacher": run, "method": "head"}, "features"),
        ({"recipe": "distill", "teacher": run, "recipe_arg": {"heat": 1}}, "nearest|known"),
        ({"recipe": "distill", "teacher": run, "recipe_arg": {"alpha": "x"}}, "a number"),
        ({"recipe": "distill", "teacher": run, "recipe_arg": {"alpha": 2}}, "alpha from 0 to 1"),
        ({"recipe": "distill", "teacher": "minilm"}, "is not trained for the labels"),
        ({"recipe": "distill", "teacher": "./nothing"}, "does not exist"),
    ]:
        with pytest.raises(InputError, match=why):
            tune(settings(tmp_path / "run", **given), quiet=True)
        assert not (tmp_path / "run").exists()  # wrong input leaves nothing behind
    other = tmp_path / "other.csv"
    other.write_text("text,label\n" + "".join(f"text {i},{'xyz'[i % 3]}\n" for i in range(60)))
    with pytest.raises(InputError, match="knows the labels"):
        tune(settings(tmp_path / "run", data=str(other), recipe="distill", teacher=run), quiet=True)
