"""Recommendation: the item that comes next, after those that somebody has chosen so far.

    L = - mean over places t of  log softmax(z_t)[i_{t+1}],     z_t of the items i_1 … i_t

A causal transformer over item ids (Kang and McAuley 2018, SASRec, arXiv:1808.09781), which learns
from every place of a sequence; here with a softmax over all items instead of drawn negatives. Any
causal language model of transformers serves whose vocabulary is the items: `items.json` beside its
weights is a list of them, each at the place of its id.

    trimtab tune --task recommendation --model models/shop --data visits.jsonl --out runs/autumn

of lines {"items": ["lamp", "bulb"], "next": "shade"}; without `next`, the last item is what is
asked for. All items are ranked, none is left out by chance.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError, nearest
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Example, Outputs, Task, shortest_first
from trimtab.tasks.tokens import IGNORED, pad

if TYPE_CHECKING:
    from datasets import Dataset

ITEMS = Column("items", ("history", "sequence", "item_ids", "session", "visits"), kind="words")
NEXT = Column("next", ("next_item", "target", "label", "item"), required=False)
NAME = "items.json"
_SHOWN = 4  # items that a report shows


@dataclass(frozen=True)
class Catalogue:
    """The items, each at the place of its id."""

    items: tuple[str, ...]
    ids: Mapping[str, int]


@functools.cache
def catalogue(name: str) -> Catalogue:
    """What a model recommends from."""
    path = Path(models.resolve(name)) / NAME
    try:
        items = json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
        raise InputError(
            f"model {name!r} has no {NAME} beside its weights: a JSON list of the items, each at "
            "the place of its id"
        )
    names = tuple(map(str, items))
    ids = {item: i for i, item in enumerate(names)}
    size = models.configuration(name).get_text_config().vocab_size
    if len(ids) < len(names) or len(names) > size:
        raise InputError(
            f"model {name!r}: {NAME} has {len(names):,} items, {len(ids):,} of them different, and "
            f"the model {size:,} ids"
        )
    return Catalogue(names, ids)


@dataclass(frozen=True, kw_only=True)
class Recommendation(Task):
    """`repeats`: whether what somebody has chosen before can be recommended again; `first`: how
    many items `predict` tells."""

    repeats: bool = True
    first: int = 10

    name: ClassVar[str] = "recommendation"
    columns: ClassVar[tuple[Column, ...]] = (ITEMS, NEXT)
    metrics: ClassVar[tuple[str, ...]] = ("ndcg_at_10", "hit_rate_at_10", "mrr")  # type: ignore[misc]
    by_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.repeats, bool):
            raise InputError(f"{self.name}: repeats is true or false, not {self.repeats!r}")
        if isinstance(self.first, bool) or not isinstance(self.first, int) or self.first < 1:
            raise InputError(f"{self.name}: first is a number of items, not {self.first!r}")

    def fault(self, row: Mapping[str, Any]) -> str | None:
        if len(sequence(row)) < 2:
            return "one item alone has none that comes after it"
        return None

    def unfit(self, row: Mapping[str, Any], model: str) -> str | None:
        known = catalogue(model)
        unknown = next((item for item in sequence(row) if item not in known.ids), None)
        if unknown is None:
            return None
        return (
            f"the item {unknown!r} is none of the {len(known.items):,} that {model!r} knows; "
            f"{nearest(unknown, known.items)}"
        )

    def processor(self, model: str) -> Catalogue:
        return catalogue(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        return models.load_model("AutoModelForCausalLM", name, config, dtype, dropout=dropout)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, None)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        return [len(sequence(row)) for row in rows]

    # Examples

    def encode(
        self, rows: Dataset, processor: Catalogue, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Of a long history the last items are read; `labels` are the items one place later."""
        examples: list[Example] = []
        for row in rows:
            ids = [processor.ids[item] for item in sequence(row, asked=labels is None)]
            given = ids if labels is None else ids[:-1]
            example = {"input_ids": given[-max_length:], "seen": sorted(set(given))}
            if labels is not None:
                example["labels"] = ids[1:][-max_length:]
            examples.append({**example, "length": len(example["input_ids"]), "whole": len(given)})
        cut = sum(example["whole"] > max_length for example in examples)
        return shortest_first(examples, cut)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Catalogue
    ) -> dict[str, Tensor]:
        """(batch, longest) ids, mask and labels; (batch, items) whether an item cannot be
        recommended."""
        ones = [{"mask": [1] * example["length"]} for example in examples]
        batch = {"input_ids": pad(examples, "input_ids", 0), "attention_mask": pad(ones, "mask", 0)}
        barred = torch.zeros(len(examples), len(processor.items), dtype=torch.bool)
        for row, example in zip(barred, examples, strict=True):
            row[[] if self.repeats else example["seen"]] = True
        batch["barred"] = barred
        if "labels" in examples[0]:
            batch["labels"] = pad(examples, "labels", IGNORED)
        return batch

    # Training and answers

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits, targets = outputs.logits.flatten(0, 1).float(), batch["labels"].flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED), outputs

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """The rank of the item asked for (n,), infinite where it cannot be recommended; without
        labels the first items' ids and probabilities (n, first, 2)."""
        last, barred = batch["attention_mask"].sum(1) - 1, batch["barred"]
        rows = torch.arange(len(last), device=last.device)
        scores = outputs.logits[rows, last, : barred.shape[1]].float()
        scores = scores.masked_fill(barred, -torch.inf)
        if "labels" in batch:
            own = scores.gather(1, batch["labels"][rows, last][:, None])
            ranks = 1 + (scores > own).sum(1)
            return torch.where(own[:, 0].isinf(), torch.inf, ranks).cpu().numpy()
        p, best = scores.softmax(-1).topk(min(self.first, scores.shape[1]))
        return torch.stack([best, p], -1).cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        asked = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return self.rows_of(model(**asked), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """Each rank, None of what cannot be recommended."""
        return [int(rank) if np.isfinite(rank) else None for rank in outputs]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        return [sequence(row)[-1] for row in rows]

    def told(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Catalogue
    ) -> list:
        return [
            {
                "row": i,
                "recommended": [processor.items[int(place)] for place, p in row if p > 0],
                "probabilities": [round(float(p), 6) for _, p in row if p > 0],
            }
            for i, row in enumerate(outputs, start=1)
        ]

    def shown(self, rows: Dataset, index: int) -> str:
        return f"…, {', '.join(sequence(rows[index])[:-1][-_SHOWN:])}"


def sequence(row: Mapping[str, Any], *, asked: bool = False) -> list[str]:
    """A row's items with what comes next, where that is said and not `asked`."""
    after = None if asked else row.get("next")
    return [*row["items"], *([after] if after else [])]
