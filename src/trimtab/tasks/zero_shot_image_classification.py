"""Pictures with texts: two encoders whose vectors are close where a text tells of a picture.

CLIP (Radford et al. 2021, arXiv:2103.00020), with z_ij = exp(τ) <v_i, t_j> of a batch:

    L = ½ mean_i -log softmax_j(z_ij)[i]  +  ½ mean_j -log softmax_i(z_ij)[j]

SigLIP (Zhai et al. 2023, arXiv:2303.15343), with a bias b and y_ij = ±1:

    L = mean_i Σ_j -log sigmoid(y_ij (z_ij + b))

Pictures that share a text are no negatives of each other. A picture is then told from others by the
nearest of the texts that there are: where these are the names of classes, recall at 1 from image to
text is accuracy. From text to image it is found how often a text's own picture is nearer to it than
those of other texts.

    trimtab tune --task zero-shot-image-classification --model clip --data shown.csv --out runs/x

of a table with the columns `image` and `text`.
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
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics, named
from trimtab.tasks.sentence_similarity import pair_ranks
from trimtab.tasks.task import Batch, Encoded, Outputs, shortest_first
from trimtab.tasks.tokens import pad, padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

TEXT = Column("text", ("caption", "description", "sentence", "title", "label"))


class PicturesWithTexts:
    """An image processor and a tokenizer; `whole` is the length that every text is padded to, of
    models that read a text at its last place."""

    def __init__(self, pictures: Pictures, tokenizer: Any, whole: int | None) -> None:
        self.pictures, self.tokenizer, self.whole = pictures, tokenizer, whole


@dataclass(frozen=True, kw_only=True)
class ZeroShotImageClassification(PictureTask):
    """`size`, `mean` and `deviation` stand for the checkpoint's own preparation of pictures."""

    name: ClassVar[str] = "zero-shot-image-classification"
    varied: ClassVar[tuple[str, ...]] = ("image",)
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, TEXT)
    by_token: ClassVar[bool] = True  # pairs are compared with all of their batch: no parts

    @property
    def given(self) -> tuple[str, ...]:
        return "image", "text"

    @property
    def metrics(self) -> tuple[str, ...]:
        ways = "image_to_text_recall_at", "text_to_image_recall_at"
        return tuple(f"{way}_{k}" for k in (1, 5) for way in ways)

    def processor(self, model: str) -> PicturesWithTexts:
        config = models.configuration(model)
        read = getattr(config, "text_config", None)
        if read is None or getattr(config, "vision_config", None) is None:
            raise InputError(
                f"model {model!r} ({config.model_type}) has no encoders of pictures and of texts, "
                "as CLIP and SigLIP have"
            )
        last = config.model_type.startswith("siglip")
        whole = int(read.max_position_embeddings) if last else None
        return PicturesWithTexts(self._processor(model), models.load_tokenizer(model), whole)

    def model(
        self,
        name: str,
        labels: Sequence[str],
        processor: PicturesWithTexts,
        dtype: torch.dtype,
        dropout: bool,
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        model, fresh = models.load_model(
            "AutoModelForZeroShotImageClassification", name, config, dtype, dropout=dropout
        )
        hold_statistics(model)
        processor.pictures.dtype = dtype
        return model, fresh

    def width(self, name: str) -> int:
        return int(models.configuration(name).vision_config.hidden_size)

    def lengths(self, rows: Dataset, processor: PicturesWithTexts) -> list[int]:
        return [
            e["length"] for e in tokenise(processor.tokenizer, list(rows["text"]), None, 10**9)[0]
        ]

    def limit(self, model: Any, processor: PicturesWithTexts) -> int:
        return models.position_limit(model.config.text_config, processor.tokenizer)

    def encode(
        self,
        rows: Dataset,
        processor: PicturesWithTexts,
        labels: Sequence[str] | None,
        max_length: int,
    ) -> Encoded:
        """A text with its picture, which stays as the data has it until its batch is made."""
        texts = list(rows["text"])
        examples, cut = tokenise(processor.tokenizer, texts, None, max_length)
        numbers: dict[str, int] = {}
        for example, cell, text in zip(examples, rows["image"], texts, strict=True):
            example["image"] = cell
            if labels is not None:
                example["labels"] = numbers.setdefault(text, len(numbers))
        return shortest_first(examples, cut)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: PicturesWithTexts
    ) -> dict[str, Tensor]:
        """Pixels (batch, channels, height, width), token ids and mask (batch, longest), and labels
        (batch,): the same number for the same text."""
        batch = padded(examples, processor.tokenizer)
        if processor.whole is not None:
            filler = {"input_ids": [processor.tokenizer.pad_token_id] * processor.whole}
            ids = pad([*examples, filler], "input_ids", processor.tokenizer.pad_token_id)[:-1]
            batch = {"input_ids": ids}
        pixels, _ = processor.pictures.batch([example["image"] for example in examples])
        batch["pixel_values"] = pixels
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**{key: x for key, x in batch.items() if key != "labels"})
        z, texts = outputs.logits_per_image.float(), batch["labels"]
        same = texts[:, None] == texts[None]
        if hasattr(model, "logit_bias"):
            return -F.logsigmoid(torch.where(same, z, -z)).sum(-1).mean(), outputs
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        z, right = z.masked_fill(same & ~own, -torch.inf), torch.arange(len(z), device=z.device)
        return (F.cross_entropy(z, right) + F.cross_entropy(z.T, right)) / 2, outputs

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """(batch, 2, width): of length 1, of the picture and of its text."""
        both = torch.stack([outputs.image_embeds.float(), outputs.text_embeds.float()], 1)
        return F.normalize(both, dim=-1).cpu().numpy()

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[dict[str, int]]:
        """The rank of each picture's text among all different ones, and that of the picture, asked
        for by its text, among those of other texts."""
        vectors, texts = np.asarray(outputs), list(rows["text"])
        pictures = [str(i) for i in range(len(rows))]
        there = pair_ranks(vectors, pictures, texts)
        back = pair_ranks(vectors[:, ::-1], texts, pictures)
        return [
            {"image_to_text": one, "text_to_image": other}
            for one, other in zip(there, back, strict=True)
        ]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[dict[str, int]]:
        return [{"image_to_text": 1, "text_to_image": 1}] * len(rows)

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        """Of each picture the similarity of its text, and the nearest of the texts given."""
        vectors, texts = np.asarray(outputs), list(rows["text"])
        best = (vectors[:, 0] @ vectors[:, 1].T).argmax(-1)
        close = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        return [
            {
                "image": named(cell, i),
                "text": texts[i],
                "similarity": round(float(close[i]), 6),
                "nearest": texts[best[i]],
            }
            for i, cell in enumerate(rows["image"])
        ]
