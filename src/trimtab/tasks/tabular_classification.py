"""Tabular classification: a label for a row of numbers and categories.

    L = mean over rows of  w_y · -log softmax(z)[y],   w_y = 1, or n / (k n_y) where balanced

    trimtab tune --task tabular-classification --model models/records --data transfers.csv \\
        --task-arg positive=fraud --task-arg weights=balanced --out runs/transfers

of a file with the columns that the model was trained on, under the same names, and a `label`.
`trimtab.tasks.tabular` tells what a model's folder holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.table import Table
from trimtab.tasks import decision, tabular
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.task import Batch, Encoded, Outputs, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class TabularClassification(OneLabel):
    """`positive`: the label that is looked for, by which rows are ranked; without it labels are
    told apart. With `weights` balanced, each label counts alike in training."""

    positive: str = ""
    weights: Literal["even", "balanced"] = "even"

    name: ClassVar[str] = "tabular-classification"
    columns: ClassVar[tuple[Column, ...]] = (tabular.NUMBERS, tabular.CATEGORIES, LABEL)
    eval_batch: ClassVar[int] = 512
    # bf16 tells numbers to three digits
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def __post_init__(self) -> None:
        if self.weights not in ("even", "balanced"):
            raise InputError(f"{self.name}: weights are even or balanced, not {self.weights!r}")
        object.__setattr__(self, "positive", str(self.positive))

    @property
    def given(self) -> tuple[str, ...]:
        return "numbers", "categories"

    @property
    def metrics(self) -> tuple[str, ...]:
        return decision.METRICS if self.positive else ("accuracy", "macro_f1")

    def arranged(self, tables: Mapping[str, Table], model: str, *, new: bool) -> dict[str, Table]:
        return tabular.arranged(tables, model)

    def labels(self, rows: Dataset) -> list[str]:
        labels = super().labels(rows)
        if self.positive:
            decision.refuse(self.positive, labels)
        return labels

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        own = tabular.opened(name)[0]["labels"]
        return own if sorted(own) == sorted(labels) else list(labels)

    def processor(self, model: str) -> tabular.Columns:
        return tabular.opened(model)[1]

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        return tabular.load(name, labels, dropout)

    def width(self, name: str) -> int:
        return int(tabular.opened(name)[0]["sizes"]["d_block"])

    def encode(
        self,
        rows: Dataset,
        processor: tabular.Columns,
        labels: Sequence[str] | None,
        max_length: int,
    ) -> Encoded:
        examples = [processor.example(*row) for row in tabular.rows_of(rows)]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def encode_for_training(
        self,
        rows: Dataset,
        processor: tabular.Columns,
        labels: Sequence[str] | None,
        max_length: int,
    ) -> Encoded:
        found = self.encode(rows, processor, labels, max_length)
        if self.weights == "balanced":
            counts = Counter(example["labels"] for example in found.examples)
            for example in found.examples:
                n = counts[example["labels"]]
                example["weights"] = len(found.examples) / (len(counts) * n)
        return found

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: tabular.Columns
    ) -> dict[str, Any]:
        batch: dict[str, Any] = processor.collate(examples)
        for key in ("labels", "weights"):
            if key in examples[0]:
                batch[key] = torch.tensor([example[key] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = model(batch["x_cont"], batch["x_cat"])
        if "weights" not in batch:
            return self.loss_of(scores, batch["labels"]), scores
        each = F.cross_entropy(scores, batch["labels"], reduction="none")
        return (each * batch["weights"]).mean(), scores

    def fitness(self, logits: Tensor, labels: Tensor) -> float:
        if self.positive:  # accuracy is won by those that never find it
            return -float(self.loss_of(logits, labels))
        return super().fitness(logits, labels)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        if self.positive:
            return decision.sure(outputs, labels, self.positive)
        return super().answers(outputs, rows, labels, processor)

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        given = super().references(rows, labels)
        return decision.right(given, self.positive) if self.positive else given

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        each = enumerate(torch.as_tensor(outputs), start=1)
        return [{"row": i, **decision.told(z, labels, self.positive)} for i, z in each]

    def shown(self, rows: Dataset, index: int) -> str:
        return tabular.shown(rows, index)
