"""Molecule properties: a number, or activities, of a molecule in SMILES.

    number        L = mean of (z - y)²                                          RMSE
    activities    L = mean over molecules of the mean over what was measured of
                      -log σ(z) where active, -log σ(-z) where not              area under the ROC

Few compounds go through every assay. A cell of an assay that is empty was not measured: it is left
out of the loss and of the metric, and the others of its molecule stay. An encoder over SMILES is
one such as ChemBERTa (Chithrananda et al. 2020, arXiv:2010.09885); splits by scaffold (Wu et al.
2018, MoleculeNet, arXiv:1703.00564) tell more than random ones, where close kin are on both sides.

    trimtab tune --task molecule-property --model smiles-bert --data solubility.csv --out runs/esol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.molecules import canonical
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, at_least, shortest_first
from trimtab.tasks.tokens import padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["number", "activity"]
SMILES = Column(
    "smiles", ("molecule", "mol", "canonical_smiles", "structure", "drug", "text"), kind="smiles"
)
_LABEL = Column("label", ("value", "target", "activity", "y", "score"), kind="number")


@dataclass(frozen=True, kw_only=True)
class MoleculeProperty(Task):
    """`kind`: a number, or activities of 0 or 1; `assays` names the columns of several, with commas
    between them. With `canonical`, the model sees RDKit's notation of each molecule."""

    kind: Kind = "number"
    assays: str = ""
    canonical: bool = False

    name: ClassVar[str] = "molecule-property"
    one_vector: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("number", "activity"):
            raise InputError(f"{self.name}: kind is number or activity, not {self.kind!r}")
        if self.assays and self.kind == "number":
            raise InputError(f"{self.name}: assays belong to kind=activity")

    @property
    def several(self) -> list[str]:
        return [name.strip() for name in str(self.assays).split(",") if name.strip()]

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        assays = (Column(name, (), required=False, kind="number") for name in self.several)
        return SMILES, *(assays if self.assays else (_LABEL,))

    @property
    def metrics(self) -> tuple[str, ...]:
        if self.kind == "number":
            return "rmse", "pearson"
        return ("macro_roc_auc",) if self.assays else ("roc_auc", "average_precision")

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if self.kind == "number":
            return None
        found = {name: row.get(name) for name in self._targets()}
        if odd := {name: one for name, one in found.items() if one not in (0, 1, None)}:
            name, value = next(iter(odd.items()))
            return f"the {name} is {value:g}, and an activity is 0 or 1"
        if all(one is None for one in found.values()):
            return "none of its assays was measured"
        return None

    def _targets(self) -> list[str]:
        return self.several or [_LABEL.name]

    def labels(self, rows: Dataset) -> list[str]:
        self._refuse_absent(rows, "the training data")
        return self._targets()

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
        return [one["length"] for one in tokenise(processor, self._smiles(rows), None, 10**9)[0]]

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples, truncated = tokenise(processor, self._smiles(rows), None, max_length)
        if labels is not None:
            for example, row in zip(examples, self._measured(rows), strict=True):
                example["labels"] = row
        return shortest_first(examples, truncated)

    def _smiles(self, rows: Dataset) -> list[str]:
        return [canonical(one) if self.canonical else one for one in rows["smiles"]]

    def _measured(self, rows: Dataset) -> list[list[float]]:
        """Of each molecule a number for each target; NaN where it was not measured."""
        columns = [rows[name] for name in self._targets()]
        return [
            [float("nan") if one is None else float(one) for one in row]
            for row in zip(*columns, strict=True)
        ]

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(batch, longest) token ids and mask, and labels (batch, targets)."""
        batch = padded(examples, processor)
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{key: x for key, x in batch.items() if key != "labels"})
        return self.loss_of(outputs.logits, batch["labels"]), outputs

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of (batch, targets), in fp32."""
        if self.kind == "number":
            return F.mse_loss(logits.float(), labels)
        there = ~labels.isnan()
        each = F.binary_cross_entropy_with_logits(
            logits.float(), labels.nan_to_num(), reduction="none"
        )
        return ((each * there).sum(-1) / there.sum(-1)).mean()

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """A number; or the probability of activity, one for each of several assays."""
        z = torch.from_numpy(outputs)
        found = (z if self.kind == "number" else z.sigmoid()).tolist()
        return found if self.assays else [row[0] for row in found]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        measured = self._measured(rows)
        return measured if self.assays else [row[0] for row in measured]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {"smiles": smiles, **self._told(answer)}
            for smiles, answer in zip(rows["smiles"], answers, strict=True)
        ]

    def _told(self, answer: Any) -> dict[str, Any]:
        if self.kind == "number":
            return {"value": round(answer, 6)}
        chances = answer if self.assays else [answer]
        found = {
            name: round(chance, 6) for name, chance in zip(self._targets(), chances, strict=True)
        }
        return {"activities": found} if self.assays else {"activity": found[_LABEL.name]}

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        at_least(rows, where)
        self._refuse_absent(rows, where)

    def _refuse_absent(self, rows: Dataset, where: str) -> None:
        if absent := [name for name in self._targets() if name not in rows.column_names]:
            raise InputError(
                f"{where} has no column {absent[0]!r}, which assays={self.assays} names: name "
                "those that every split has"
            )
