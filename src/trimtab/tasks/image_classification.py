"""Image classification: a label for a picture.

    trimtab tune --task image-classification --model deit --data flowers/ --out runs/flowers

of a folder with a folder of pictures for each label, or of a file with a column `image` of paths
and a column `label`. Any model of transformers that classifies pictures: transformers over patches
(Dosovitskiy et al. 2021, arXiv:2010.11929) and convolutional nets alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.one_label import LABEL, OneLabel, labelled
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics
from trimtab.tasks.task import Encoded, shortest_first

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE = Column("image", ("img", "picture", "photo", "file", "path", "file_name"), kind="image")


@dataclass(frozen=True, kw_only=True)
class ImageClassification(OneLabel, PictureTask):
    """`size`, `mean` and `deviation` stand for the checkpoint's own preparation of pictures."""

    name: ClassVar[str] = "image-classification"
    varied: ClassVar[tuple[str, ...]] = ("image",)
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, LABEL)

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
        config = models.configuration(name, **models.of_labels(labels))
        model, fresh = models.load_model(
            "AutoModelForImageClassification", name, config, dtype, dropout=dropout
        )
        hold_statistics(model)
        processor.dtype = dtype
        return model, models.with_head(name, model, fresh, labels)

    def encode(
        self, rows: Dataset, processor: Pictures, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """Pictures stay as the data has them until their batch is made."""
        examples = [{"image": cell, "length": 1} for cell in rows["image"]]
        labelled(examples, rows, labels)
        return shortest_first(examples)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Pictures
    ) -> dict[str, Tensor]:
        """(batch, channels, height, width) pixels, and labels (batch,)."""
        batch = {"pixel_values": processor.batch([example["image"] for example in examples])[0]}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch
