"""What the tasks share that give one label to a whole picture or recording.

L = mean over examples of  -log softmax(z)[label]        answer = argmax z
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Example, Outputs, Task
from trimtab.tasks.text_classification import known_labels, numbers_first

if TYPE_CHECKING:
    from datasets import Dataset

LABEL = Column("label", ("labels", "class", "category", "target", "keyword", "digit"), kind="label")


@dataclass(frozen=True, kw_only=True)
class OneLabel(Task):
    """The model's head gives a score for each label."""

    one_vector: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return "accuracy", "macro_f1"

    def labels(self, rows: Dataset) -> list[str]:
        return sorted(set(rows["label"]), key=numbers_first)

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return models.in_own_order(name, labels)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{key: x for key, x in batch.items() if key != "labels"})
        return self.loss_of(outputs.logits, batch["labels"]), outputs

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In fp32, whatever the model's dtype."""
        return F.cross_entropy(logits.float(), labels)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[str]:
        return [labels[best] for best in outputs.argmax(-1)]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[str]:
        return list(rows["label"])

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        sure = torch.from_numpy(outputs).softmax(-1).amax(-1)
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {self.columns[0].name: self.shown(rows, i), "label": label, "probability": round(p, 6)}
            for i, (label, p) in enumerate(zip(answers, sure.tolist(), strict=True))
        ]

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        known_labels(rows["label"], labels, where)


def labelled(examples: Sequence[Example], rows: Dataset, labels: Sequence[str] | None) -> None:
    """Give each example the index of its label, unless `labels` is None."""
    if labels is None:
        return
    index = {label: i for i, label in enumerate(labels)}
    for example, label in zip(examples, rows["label"], strict=True):
        example["labels"] = index[label]
