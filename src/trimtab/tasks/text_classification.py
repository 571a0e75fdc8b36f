"""Text classification: a label for a text or a pair of texts, several labels, or a number.

one label        cross entropy             accuracy, macro F1, MCC; of one that is looked for
                                           average precision, area under the ROC curve
several labels   binary cross entropy      micro F1
regression       squared error             Pearson, RMSE
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import decision, models
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, shortest_first
from trimtab.tasks.tokens import padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["one", "several", "number"]
_NUMBER = "value"  # the name of a regression's only output
_TEXT = Column(
    "text",
    (
        *("text", "sentence", "content", "review", "utterance", "sentence1", "premise"),
        *("query", "question", "document", "body", "title"),
    ),
)
_PAIR = Column("pair", ("sentence2", "hypothesis", "text_pair"), required=False)
_LABELS = ("label", "labels", "category", "class", "intent", "target", "sentiment", "topic")


def numbers_first(label: str) -> tuple[int, int, str]:
    number = re.fullmatch(r"-?[0-9]{1,18}", label)
    return (0, int(label), label) if number else (1, 0, label)


def known_labels(given: Sequence[str], labels: Sequence[str], where: str) -> None:
    """Refuse labels that a run never saw."""
    unknown = sorted(set(given) - set(labels))
    if unknown:
        raise InputError(
            f"{where} has labels that the run never saw: {unknown[:5]}; it knows {list(labels)}"
        )


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """`kind`: one label an example, several, or a number. With `weights` balanced, each label
    counts alike in training, however many examples it has; `positive` is the label that is looked
    for, by which texts are ranked."""

    kind: Kind = "one"
    weights: Literal["even", "balanced"] = "even"
    positive: str = ""

    name: ClassVar[str] = "text-classification"
    varied: ClassVar[tuple[str, ...]] = ("text", "pair")
    one_vector: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("one", "several", "number"):
            raise InputError(
                f"text-classification: kind is one, several or number, not {self.kind!r}"
            )
        if self.weights not in ("even", "balanced"):
            raise InputError(
                f"text-classification: weights are even or balanced, not {self.weights!r}"
            )
        if self.weights == "balanced" and self.kind != "one":
            raise InputError("text-classification: weights belong to kind=one")
        object.__setattr__(self, "positive", str(self.positive))
        if self.positive and self.kind != "one":
            raise InputError("text-classification: positive belongs to kind=one")

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        kinds: dict[Kind, Any] = {"one": "label", "several": "labels", "number": "number"}
        return _TEXT, _PAIR, Column("label", (*_LABELS, "score"), kind=kinds[self.kind])

    @property
    def given(self) -> tuple[str, ...]:
        return "text", "pair"

    @property
    def metrics(self) -> tuple[str, ...]:
        by_kind: dict[Kind, tuple[str, ...]] = {
            "one": decision.METRICS if self.positive else ("accuracy", "macro_f1", "mcc"),
            "several": ("micro_f1",),
            "number": ("pearson", "spearman", "rmse"),
        }
        return by_kind[self.kind]

    def labels(self, rows: Dataset) -> list[str]:
        if self.kind == "number":
            return [_NUMBER]
        given = rows["label"]
        names = {one for row in given for one in row} if self.kind == "several" else set(given)
        labels = sorted(names, key=numbers_first)
        if self.positive:
            decision.refuse(self.positive, labels)
        return labels

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return models.in_own_order(name, labels)

    def processor(self, model: str) -> Any:
        return models.load_tokenizer(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name, **models.of_labels(labels))
        config.pad_token_id = processor.pad_token_id
        model, fresh = models.load_model(
            "AutoModelForSequenceClassification", name, config, dtype, dropout=dropout
        )
        return model, models.with_head(name, model, fresh, labels)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [e["length"] for e in tokenise(processor, *self._texts(rows), 10**9)[0]]

    def _texts(self, rows: Dataset) -> tuple[list[str], list[str] | None]:
        pairs = list(rows["pair"]) if "pair" in rows.column_names else None
        return list(rows["text"]), pairs

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples, truncated = tokenise(processor, *self._texts(rows), max_length)
        if labels is not None:
            for example, label in zip(examples, self.targets(rows, labels), strict=True):
                example["labels"] = label
        return shortest_first(examples, truncated)

    def encode_for_training(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        found = self.encode(rows, processor, labels, max_length)
        if self.weights == "balanced":
            counts = Counter(example["labels"] for example in found.examples)
            for example in found.examples:
                share = counts[example["labels"]] / len(found.examples)
                example["weights"] = 1 / (len(counts) * share)
        return found

    def targets(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        """What the loss compares with: an index, a 0 or 1 for each label, or a number."""
        given = list(rows["label"])
        if self.kind == "number":
            return [float(value) for value in given]
        index = {label: i for i, label in enumerate(labels)}
        if self.kind == "one":
            return [index[label] for label in given]
        return [[float(label in row) for label in labels] for row in map(set, given)]

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(batch, longest) token ids and mask, and labels (batch,) or (batch, labels)."""
        batch = padded(examples, processor)
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        if "weights" in examples[0]:
            batch["weights"] = torch.tensor([example["weights"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        given = {key: x for key, x in batch.items() if key not in ("labels", "weights")}
        outputs = model(**given)
        if "weights" in batch:
            each = F.cross_entropy(outputs.logits.float(), batch["labels"], reduction="none")
            return (each * batch["weights"]).mean(), outputs
        return self.loss_of(outputs.logits, batch["labels"]), outputs

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In fp32, whatever the model's dtype."""
        if self.kind == "several":
            return F.binary_cross_entropy_with_logits(logits.float(), labels)
        if self.kind == "number":
            return F.mse_loss(logits.float().squeeze(-1), labels)
        return F.cross_entropy(logits.float(), labels)

    def fitness(self, logits: Tensor, labels: Tensor) -> float:
        if self.positive:  # accuracy is won by those that never find it
            return -float(self.loss_of(logits, labels))
        return super().fitness(logits, labels)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        if self.kind == "number":
            return [float(row[0]) for row in outputs]
        if self.positive:
            return decision.sure(outputs, labels, self.positive)
        if self.kind == "one":
            return [labels[best] for best in outputs.argmax(-1)]
        return [[labels[i] for i in np.flatnonzero(row > 0)] for row in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        given = list(rows["label"])
        return decision.right(given, self.positive) if self.positive else given

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {**self._given(rows, i), **self._told(row, answer, labels)}
            for i, (row, answer) in enumerate(zip(outputs, answers, strict=True))
        ]

    def _given(self, rows: Dataset, index: int) -> dict[str, str]:
        names = [name for name in ("text", "pair") if name in rows.column_names]
        return {name: rows[name][index] for name in names}

    def _told(self, row: np.ndarray, answer: Any, labels: Sequence[str]) -> dict[str, Any]:
        if self.kind == "number":
            return {"value": round(answer, 6)}
        z = torch.from_numpy(row)
        if self.kind == "several":
            sure = [round(float(p), 6) for p in z.sigmoid() if p > 0.5]
            return {"labels": answer, "probabilities": sure}
        return decision.told(z, labels, self.positive)

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        if self.kind == "number":
            return
        given = rows["label"]
        known_labels([one for row in given for one in row] if self.kind == "several" else given,
                     labels, where)  # fmt: skip
