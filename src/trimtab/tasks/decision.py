"""One label that is looked for, such as fraud: how sure a classifier is of it.

    s = log p₊ - log (1 - p₊),   p = softmax(z)

Rows are compared by s alone, over all thresholds: average precision, which is low where positives
are few and lost among the rest, and the area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import InputError, nearest
from trimtab.tasks.task import Outputs

METRICS = ("average_precision", "roc_auc")


def refuse(positive: str, labels: Sequence[str]) -> None:
    """A label to look for that the data do not have."""
    if positive not in labels:
        raise InputError(
            f"--task-arg positive={positive}: no row of train has this label; "
            f"{nearest(positive, labels)}"
        )


def sure(outputs: Outputs, labels: Sequence[str], positive: str) -> list[float]:
    """s of each row of outputs (n, labels)."""
    z, place = torch.as_tensor(outputs).double(), labels.index(positive)
    others = [i for i in range(len(labels)) if i != place]
    return (z[:, place] - z[:, others].logsumexp(-1)).tolist()


def right(given: Iterable[str], positive: str) -> list[bool]:
    return [label == positive for label in given]


def told(z: Tensor, labels: Sequence[str], positive: str = "") -> dict[str, Any]:
    """Of one row's outputs (labels,): the likeliest label, its probability, and p₊."""
    p = z.softmax(-1)
    found = {"label": labels[int(p.argmax())], "probability": round(float(p.max()), 6)}
    return {**found, "positive": round(float(p[labels.index(positive)]), 6)} if positive else found
