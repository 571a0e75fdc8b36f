"""Molecule pairs: what two molecules, such as two drugs, are to each other.

    u = e(a),  v = e(b)        z = w · [u ∗ v, |u - v|] + c

Two towers (Bromley et al. 1993, signature verification): an encoder e reads each molecule by
itself, its vector the mean of the last states over tokens, and the head sees what the two have in
common and what they differ in. With `towers` shared, one adapter serves both, and order does not
count; with `own`, each side has a copy of the frozen encoder and its own part of the adapter, for
pairs whose sides are of different kinds.

    number        L = (z - y)²              RMSE
    activity      L = -log σ(±z)            area under the ROC

    trimtab tune --task molecule-pair --model smiles-bert --data pairs.csv --out runs/pairs

of rows with `smiles`, `other` and `label`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.molecules import canonical
from trimtab.tasks import models
from trimtab.tasks.molecule_property import Kind
from trimtab.tasks.sentence_similarity import mean
from trimtab.tasks.task import Batch, Encoded, Outputs, Task, at_least, shortest_first
from trimtab.tasks.tokens import padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

_SIDES = ("smiles", "other")
_NAMES = (
    ("smiles1", "smiles_1", "drug1", "drug_1", "drug_a", "first"),
    ("smiles2", "smiles_2", "drug2", "drug_2", "drug_b", "second"),
)
_LABEL = Column("label", ("value", "target", "score", "synergy", "interaction"), kind="number")


class Towers(nn.Module):
    """An encoder over two molecules, and a head over what it makes of them."""

    def __init__(self, encoder: nn.Module, width: int, *, own: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.second = copy.deepcopy(encoder) if own else None
        self.head = nn.Linear(2 * width, 1)
        self._supports_sdpa = getattr(encoder, "_supports_sdpa", False)

    @property
    def config(self) -> Any:
        return self.encoder.config

    def set_attn_implementation(self, name: str) -> None:
        for tower in filter(None, (self.encoder, self.second)):
            tower.set_attn_implementation(name)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **other: Tensor) -> Tensor:
        """(batch, 1) of tokens and mask (batch, longest), and those of the `other`."""
        u = vector(self.encoder, input_ids, attention_mask)
        v = vector(self.second or self.encoder, other["other_ids"], other["other_mask"])
        score: Tensor = self.head(torch.cat([u * v, (u - v).abs()], -1).to(self.head.weight.dtype))
        return score


def vector(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """(batch, width)."""
    return mean(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


@dataclass(frozen=True, kw_only=True)
class MoleculePair(Task):
    """`kind`: a number, or an activity of 0 or 1; `towers`: shared, or own of each side. With
    `canonical`, the model sees RDKit's notation of each molecule."""

    kind: Kind = "activity"
    towers: Literal["shared", "own"] = "shared"
    canonical: bool = False

    name: ClassVar[str] = "molecule-pair"
    columns: ClassVar[tuple[Column, ...]] = (
        *(Column(*pair, kind="smiles") for pair in zip(_SIDES, _NAMES, strict=True)),
        _LABEL,
    )
    one_vector: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, known in (("kind", ("number", "activity")), ("towers", ("shared", "own"))):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise InputError(f"{self.name}: {name} is {' or '.join(known)}, not {given!r}")

    @property
    def given(self) -> tuple[str, ...]:
        return _SIDES

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("rmse", "pearson") if self.kind == "number" else ("roc_auc", "average_precision")

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if self.kind == "activity" and row["label"] not in (0, 1):
            return f"the label is {row['label']:g}, and an activity is 0 or 1"
        return None

    def processor(self, model: str) -> Any:
        return models.load_tokenizer(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        config.pad_token_id = processor.pad_token_id
        encoder, fresh = models.load_model("AutoModel", name, config, dtype, dropout=dropout)
        if hasattr(encoder, "pooler"):
            encoder.pooler = None  # nothing here would read it
        body = [f"encoder.{key}" for key in fresh if not key.startswith("pooler.")]
        made = Towers(encoder, self.width(name), own=self.towers == "own").to(dtype)
        return made, [*body, "head.weight", "head.bias"]

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [one["length"] for one in tokenise(processor, self._both(rows), None, 10**9)[0]]

    def _both(self, rows: Dataset) -> list[str]:
        both = [smiles for side in _SIDES for smiles in rows[side]]
        return list(map(canonical, both)) if self.canonical else both

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.encoder.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        both, truncated = tokenise(processor, self._both(rows), None, max_length)
        examples = [
            {"smiles": one, "other": two, "length": max(one["length"], two["length"])}
            for one, two in zip(both[: len(rows)], both[len(rows) :], strict=True)
        ]
        if labels is not None:
            for example, label in zip(examples, rows["label"], strict=True):
                example["labels"] = float(label)
        return shortest_first(examples, truncated)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(batch, longest) token ids and mask of each side, and labels (batch,)."""
        one, two = (padded([example[side] for example in examples], processor) for side in _SIDES)
        batch = {key: one[key] for key in ("input_ids", "attention_mask")}
        batch |= {"other_ids": two["input_ids"], "other_mask": two["attention_mask"]}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        scores = model(**{key: x for key, x in batch.items() if key != "labels"})
        return self.loss_of(scores, batch["labels"]), scores

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of (batch, 1) and (batch,), in fp32."""
        z = logits.float().squeeze(-1)
        if self.kind == "number":
            return F.mse_loss(z, labels)
        return F.binary_cross_entropy_with_logits(z, labels)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[float]:
        """A number, or the probability of activity."""
        z = torch.from_numpy(outputs).squeeze(-1)
        found: list[float] = (z if self.kind == "number" else z.sigmoid()).tolist()
        return found

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[float]:
        return [float(label) for label in rows["label"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        called = "value" if self.kind == "number" else "activity"
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {**{side: rows[side][i] for side in _SIDES}, called: round(answer, 6)}
            for i, answer in enumerate(answers)
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        return " and ".join(str(rows[side][index]) for side in _SIDES)

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        at_least(rows, where)
