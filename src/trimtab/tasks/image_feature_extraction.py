"""Vectors of pictures that are close where their labels are the same.

    v = f / |f|,  f what the model's body says of a picture: its first token, or its pooled map
    L = mean_i  -log softmax_j(<v_i, v⁺_j> / τ)[i]

where v⁺_i is another picture of i's label, and pictures that share it are no negatives (Khosla et
al. 2020, arXiv:2004.11362, with one positive each). What is found is measured by the share of
pictures whose nearest other has the same label, the hit rate at 1.

    trimtab tune --task image-feature-extraction --model deit --data digits/ --out runs/digits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.image_classification import IMAGE
from trimtab.tasks.one_label import LABEL
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics, named
from trimtab.tasks.sentence_similarity import contrastive, label_ranks, partners
from trimtab.tasks.task import Batch, Encoded, Outputs, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class ImageFeatureExtraction(PictureTask):
    """`temperature` is τ; `size`, `mean` and `deviation` stand for the checkpoint's own preparation
    of pictures."""

    temperature: float = 0.07

    name: ClassVar[str] = "image-feature-extraction"
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, LABEL)
    counts_tokens: ClassVar[bool] = False
    by_token: ClassVar[bool] = True  # pictures are compared with all of their batch: no parts

    def __post_init__(self) -> None:
        super().__post_init__()
        τ = self.temperature
        if isinstance(τ, bool) or not isinstance(τ, int | float) or not τ > 0:
            raise InputError(f"{self.name}: temperature is above 0, not {τ!r}")

    @property
    def metrics(self) -> tuple[str, ...]:
        return "hit_rate_at_1", "mrr"

    def processor(self, model: str) -> Pictures:
        return self._processor(model)

    def model(
        self,
        name: str,
        labels: Sequence[str],
        processor: Pictures,
        dtype: torch.dtype,
        dropout: bool,
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        model, fresh = models.load_model("AutoModel", name, config, dtype, dropout=dropout)
        if any(key.startswith("pooler.") for key in fresh):
            model.pooler = None  # no checkpoint filled it, and nothing here would read it
        hold_statistics(model)
        processor.dtype = dtype
        return model, [key for key in fresh if not key.startswith("pooler.")]

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def encode(
        self, rows: Dataset, processor: Pictures, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        cells = list(rows["image"])
        examples: list[dict[str, Any]] = [{"image": cell, "length": 1} for cell in cells]
        if labels is not None:
            numbers: dict[str, int] = {}
            others = partners(rows["label"])
            for example, other, label in zip(examples, others, rows["label"], strict=True):
                example["positive"] = cells[other]
                example["labels"] = numbers.setdefault(label, len(numbers))
        return shortest_first(examples)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Pictures
    ) -> dict[str, Tensor]:
        """Pixels (pictures, channels, height, width), with labels those of the positives after
        them, and labels (batch,)."""
        cells = [example["image"] for example in examples]
        cells += [example["positive"] for example in examples if "positive" in example]
        batch = {"pixel_values": processor.batch(cells)[0]}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        vectors, labels = embed(model, batch["pixel_values"]), batch["labels"]
        shared = labels[:, None].expand(-1, 2)
        return contrastive(*vectors.chunk(2), shared, self.temperature), vectors

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """(batch, width)."""
        return outputs[: len(batch.get("labels", outputs))].float().cpu().numpy()

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        count = len(batch["labels"]) if "labels" in batch else None  # positives are not asked for
        return self.rows_of(embed(model, batch["pixel_values"][:count]), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """The best rank of a picture's label among all other pictures."""
        return label_ranks(np.asarray(outputs), list(rows["label"]))

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        return [1] * len(rows)

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        return [
            {"image": named(cell, i), "vector": [round(float(x), 6) for x in vector]}
            for i, (cell, vector) in enumerate(zip(rows["image"], outputs, strict=True))
        ]


def embed(model: Any, pixels: Tensor) -> Tensor:
    """(pictures, width), of length 1."""
    outputs = model(pixel_values=pixels)
    states = outputs.last_hidden_state
    pooled = states.mean((-2, -1)) if states.ndim == 4 else states[:, 0]
    return F.normalize(pooled.float(), dim=-1)
