"""What each task asks of data and model, one file per task."""

from __future__ import annotations

from trimtab.core.errors import InputError, nearest
from trimtab.tasks.text_classification import TextClassification as TextClassification

TASKS = {TextClassification.name: TextClassification()}


def lookup(name: str) -> TextClassification:
    """The task of this name (the hub's task names)."""
    if name not in TASKS:
        raise InputError(f"no task is called {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]
