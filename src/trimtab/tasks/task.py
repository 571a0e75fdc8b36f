"""What a task says of itself: its columns, its model, its batches, its loss, how answers are read.

One file per task states these, and gets methods, speed, checkpoints, reports and errors from what
is there for all. A task's name is the hub's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column

if TYPE_CHECKING:
    from datasets import Dataset

    from trimtab.data.table import Table

UNLIMITED = 10**9  # tokens

Example = dict[str, Any]
Batch = Mapping[str, Any]
Outputs = Any  # an array with a row for each example, or a list with an array for each


@dataclass(frozen=True)
class Encoded:
    """Examples as the collator takes them, shortest first, and where each stood in the data."""

    examples: list[Example]
    order: np.ndarray
    truncated: int = 0

    def restore(self, values: Outputs) -> Outputs:
        """Values computed in this order, in the data's order."""
        if isinstance(values, np.ndarray):
            out = np.empty_like(values)
            out[self.order] = values
            return out
        placed: list[Any] = [None] * len(values)
        for value, place in zip(values, self.order, strict=True):
            placed[place] = value
        return placed


def refuse_unless_counts(task: Task, *names: str) -> None:
    """Options that count something, from 1 on: else an `InputError`."""
    for name in names:
        given = getattr(task, name)
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InputError(f"{task.name}: {name} is a whole number from 1 on, not {given!r}")


def shortest_first(examples: Sequence[Example], truncated: int = 0) -> Encoded:
    """By each example's `length`."""
    order = np.argsort([example["length"] for example in examples], kind="stable")
    return Encoded([examples[i] for i in order], order, truncated)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task, with its options as fields.

    `name` is the hub's; `columns` are what the data must have; `metrics` are names of
    `trimtab.evaluate.metrics`, of which the first decides. Where `one_vector`, the model is an
    encoder whose head reads one vector an example, which can be trained on cached features.
    `by_loss`: while training, checkpoints are compared by the loss, because answers are dear.
    `by_token`: the loss is a mean over tokens, so that a batch cannot be computed in parts.
    `dtypes` are those that the model's own operations work in. Cells of the columns `varied` may be
    changed a little in training, and the answer stays; not moved, if it says where things are or
    follows their order (`placed`).
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    one_vector: ClassVar[bool] = False
    by_loss: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    counts_tokens: ClassVar[bool] = True  # of `input_ids`, for the rate that a run reports
    eval_batch: ClassVar[int] = 64
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    varied: ClassVar[tuple[str, ...]] = ()
    placed: ClassVar[bool] = False

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def given(self) -> tuple[str, ...]:
        """The columns that `predict` reads; the others are what it answers."""
        return tuple(column.name for column in self.columns[:1])

    @property
    def metric(self) -> str:
        """The one that decides."""
        return self.metrics[0]

    @property
    def watched(self) -> str:
        """What checkpoints are compared by."""
        return "loss" if self.by_loss else self.metric

    @property
    def more_is_better(self) -> bool:
        """Of what is watched."""
        from trimtab.evaluate.metrics import METRICS

        return not self.by_loss and METRICS[self.metric].higher

    # Data

    def fault(self, row: Mapping[str, Any]) -> str | None:
        """Why this row, all of whose cells are good, cannot be learnt from or compared with."""
        return None

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        """Why this model cannot take the row, which may have nothing but what is `given`."""
        return None

    def arranged(self, tables: Mapping[str, Table], model: str, *, new: bool) -> dict[str, Table]:
        """The splits' tables, where a row of the file is no row of the task (a step of a series, of
        which windows are learnt from); `new` are rows to answer, under any name."""
        return dict(tables)

    # Labels

    def labels(self, rows: Dataset) -> list[str]:
        """The names of the model's outputs, in order, where it has one for each label."""
        return []

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        """The labels in the order of the checkpoint's own head, where it has just these names."""
        return list(labels)

    # Model

    @abstractmethod
    def processor(self, model: str) -> Any:
        """What makes numbers of the data: a tokenizer, an image processor."""

    @abstractmethod
    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        """The model for these labels, and the names of the parameters that no checkpoint filled."""

    def width(self, name: str) -> int:
        """The model's hidden width: of the products that its dtype is chosen by."""
        return 256

    # Examples

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        """Tokens of every example, where long ones can be cut; nothing elsewhere."""
        return []

    def limit(self, model: Any, processor: Any) -> int:
        """The longest example that the model takes, in tokens."""
        return UNLIMITED

    @abstractmethod
    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Examples with a `length` each, and with their `labels` unless `labels` is None."""

    def encode_for_training(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """The examples to train on, where these are not one for each row (packed texts)."""
        return self.encode(rows, processor, labels, max_length)

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Any]:
        """A batch, as the model takes it; `labels` among it where the examples have them."""

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """The loss (), a mean over the examples of the batch, and what the model gave."""
        outputs = model(**batch)
        return outputs.loss, outputs

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of tasks with a head over one vector: the loss of what the head gives."""
        raise NotImplementedError(f"{self.name} has no head over one vector")

    def fitness(self, logits: Tensor, labels: Tensor) -> float:
        """Of tasks with a head over one vector: what heads are compared by that are trained alone,
        more is better: accuracy, or of numbers the loss."""
        if labels.is_floating_point():
            return -float(self.loss_of(logits, labels))
        return float((logits.argmax(-1) == labels).float().mean())

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """What each example is answered by, from what the model gave: an array (n, …), or a list
        of arrays where they differ in size."""
        return logits_of(outputs).float().cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        """The same, from a batch with or without labels, without gradients; where answers are
        generated, this does it."""
        inputs = {key: x for key, x in batch.items() if key not in ("labels", "weights")}
        return self.rows_of(model(**inputs), batch)

    @abstractmethod
    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """One answer for each row, as the metrics take predictions."""

    @abstractmethod
    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """One for each row, as the metrics take references."""

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        """What `predict` says of each row, as JSON."""
        answers = self.answers(outputs, rows, labels, processor)
        return [{"answer": answer} for answer in answers]

    def shown(self, rows: Dataset, index: int) -> str:
        """A row as a report shows it."""
        column = self.columns[0].name
        return str(rows[column][index])

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        """Refuse rows of other data that this run cannot be evaluated on."""
        at_least(rows, where)


def logits_of(outputs: Any) -> Tensor:
    """Of what a model gave: a plain module gives them as they are."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def at_least(rows: Any, where: str) -> None:
    if not len(rows):
        raise InputError(f"{where} has no rows to evaluate on")


def stacked(parts: Sequence[Outputs]) -> Outputs:
    """What batches gave, one after the other."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [one for part in parts for one in part]
