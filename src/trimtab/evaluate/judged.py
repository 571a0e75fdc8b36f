"""The same rows answered by every row of a run's table: the base as it was loaded, its head trained
alone, and the adapted model.

All that `trimtab eval` looks at beside the metric (slices, fairness, calibration, robustness) is
told of two of them side by side: the adapted model, and what it is against. That is the head alone
where the run kept it, since a base with a new head at random says nothing.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from trimtab.core.adapter import record
from trimtab.core.errors import InputError
from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.metrics import METRICS, difference, interval
from trimtab.store.files import read_tensors
from trimtab.tasks.task import Encoded, Outputs
from trimtab.tune import features
from trimtab.tune.folder import Run
from trimtab.tune.session import Session

ADAPTED = "adapted"


@dataclass(frozen=True)
class Judged:
    """What each row of the table gave for `rows`, in their order."""

    session: Session
    rows: Any
    outputs: Mapping[str, Outputs]
    answers: Mapping[str, list[Any]]
    references: list[Any]

    @property
    def against(self) -> str:
        """What the adapted model stands beside."""
        return "head" if "head" in self.outputs else "base"

    @property
    def pair(self) -> tuple[str, str]:
        return self.against, ADAPTED

    def interval(self, row: str) -> Interval:
        metric, seed = METRICS[self.session.task.metric], self.session.config.seed
        return interval(metric, self.answers[row], self.references, seed=seed)

    def gain(self, row: str) -> Interval:
        """Of the adapted model over this row, paired."""
        metric, seed = METRICS[self.session.task.metric], self.session.config.seed
        one, other = self.answers[ADAPTED], self.answers[row]
        return difference(metric, one, other, self.references, seed=seed)


def kept_head(run: Run, model: nn.Module) -> nn.Module | None:
    """The head that the run trained alone, if it kept one; `model` has no adapter on it yet."""
    if not run.head.exists():
        return None
    head = copy.deepcopy(features.head_of(model))
    tensors = read_tensors(run.head)
    if head is None or {n: t.shape for n, t in head.state_dict().items()} != {
        n: t.shape for n, t in tensors.items()
    }:
        raise InputError(f"{run.head} does not fit the head of {run.config().model!r}")
    head.float().load_state_dict(tensors)
    return head


def judge_rows(session: Session, rows: Any) -> Judged:
    """The answers of every row of the table."""
    outputs = table_outputs(session, session.encode(rows))
    answers = {row: session.answers(given, rows) for row, given in outputs.items()}
    return Judged(session, rows, outputs, answers, session.references(rows))


def table_outputs(session: Session, encoded: Encoded) -> dict[str, Outputs]:
    """Row of the table -> what it gives, in the data's order. The adapter is active afterwards."""
    from trimtab import activate

    adapted = session.outputs(encoded, "evaluating adapted")
    active = record(session.model).switch.composition
    activate(session.model, None)
    try:
        return {**_baselines(session, encoded), ADAPTED: adapted}
    finally:
        activate(session.model, active)


def _baselines(session: Session, encoded: Encoded) -> dict[str, Outputs]:
    """As the run has them: where its head was trained alone, by the features that it reads."""
    if session.probed is None:
        return {"base": session.outputs(encoded, "evaluating base")}
    found = features.extract(
        session.model,
        encoded.examples,
        session.collate,
        batch_size=session.task.eval_batch,
        autocast=session.config.autocast,
        follow=functools.partial(session.phases.track, what="evaluating base and head"),
    )
    assert found is not None, "the head was trained on features"
    head = features.apply(session.probed, found)
    return {"base": encoded.restore(found.outputs), "head": encoded.restore(head)}


def probabilities(judged: Judged, what: str) -> dict[str, np.ndarray]:
    """(n, labels) for the two that stand side by side, of a task that gives one label of several;
    `what` needs them."""
    return {row: softmax(logits_of(judged, row, what)) for row in judged.pair}


def logits_of(judged: Judged, row: str, what: str) -> np.ndarray:
    given, labels = judged.outputs[row], judged.session.labels
    fits = isinstance(given, np.ndarray) and given.shape[1:] == (len(labels),)
    if not fits or len(labels) < 2 or not all(one in labels for one in judged.references):
        raise InputError(
            f"{what} is of tasks that give each example one label of several, which "
            f"{judged.session.task.name} does not, as this run has it"
        )
    return given.astype(float)


def softmax(z: np.ndarray) -> np.ndarray:
    shifted = np.exp(z - z.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def places(labels: Sequence[str], given: Sequence[Any]) -> np.ndarray:
    """(n,): which label each is."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[one] for one in given])
