"""A run's teacher, for the recipe of distillation: another run, or a model with the same labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.core.errors import InputError, nearest
from trimtab.recipes.distill import Distiller
from trimtab.tune.folder import Run
from trimtab.tune.session import Session


def distiller(session: Session) -> Distiller | None:
    """What joins the teacher's word to the loss; None where the run has no teacher."""
    name = session.config.teacher
    if name is None:
        return None
    with session.phases.doing(f"opening the teacher {name}"):
        made, labels, processor = _open(session, name)
    if sorted(labels) != sorted(session.labels):
        raise InputError(
            f"--teacher {name} knows the labels {labels}, and the data has {session.labels}"
        )
    if not _read_alike(processor, session.processor):
        raise InputError(
            f"--teacher {name} reads other tokens than {session.config.model!r}: a teacher needs "
            "the student's tokenizer"
        )
    if labels != session.labels:
        made = _Reordered(made, [labels.index(label) for label in session.labels])
    session.notes.append(f"taught by {name}")
    return Distiller(session.model, made.eval(), **session.config.recipe_arg)


def _open(session: Session, name: str) -> tuple[nn.Module, list[str], Any]:
    """The teacher with its labels, in the order of its outputs, and its tokenizer."""
    from trimtab.evaluate.run import open_run

    if Run(Path(name)).config_file.exists():
        found = open_run(name)
        return found.model, found.labels, found.processor
    task = session.task
    try:
        labels = task.order(name, session.labels)
        processor = task.processor(name)
    except InputError as error:
        raise InputError(
            f"--teacher {name} is no run (no config.yaml lies in it){_near(Path(name))}; nor can "
            f"it be opened as a model: {error}"
        ) from None
    made, fresh = task.model(name, labels, processor, torch.float32, dropout=False)
    if fresh:
        raise InputError(
            f"--teacher {name} is not trained for the labels {session.labels}: {fresh[0]} would be "
            "random. A teacher is a finished run, or a model with a head for just these labels"
        )
    return made.to(session.model.device), labels, processor


def _read_alike(one: Any, other: Any) -> bool:
    """Whether both make the same numbers of the same data."""
    if hasattr(one, "get_vocab") and hasattr(other, "get_vocab"):
        return bool(one.get_vocab() == other.get_vocab())
    return type(one) is type(other) and getattr(one, "to_dict", dict)() == other.to_dict()


def _near(path: Path) -> str:
    """Runs beside it that are called nearly so."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    runs = [str(one) for one in beside if Run(one).config_file.exists()]
    return f"; {nearest(str(path), runs)}" if runs else ""


class _Reordered(nn.Module):
    """A classifier with its outputs in another order."""

    def __init__(self, model: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.model, self.order = model, order
        self.config = model.config

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs["logits"] = outputs.logits[:, self.order]
        return outputs
