"""Image segmentation: a class for each pixel of a picture.

    trimtab tune --task image-segmentation --model segformer --data membranes/ --out runs/membranes

of a folder with pictures and masks of the same names, or of a file with columns `image` and `mask`
of paths. A mask's values are the classes: 0 and 255, or 0, 1, 2, …

The model sees the picture at its own size and gives scores z, more coarsely still (Xie et al. 2021,
arXiv:2105.15203). They are enlarged, z↑, and compared with the mask at the size that the model
sees; answers are at the size of the picture itself:

    L = mean over pictures of the mean over their labelled pixels of  -log softmax(z↑)[class]
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
from trimtab.data import Column, media
from trimtab.tasks import models
from trimtab.tasks.image_classification import IMAGE
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics
from trimtab.tasks.task import Batch, Encoded, Outputs, shortest_first
from trimtab.tasks.text_classification import known_labels

if TYPE_CHECKING:
    from datasets import Dataset

MASK = Column("mask", ("label", "annotation", "segmentation", "labels"), kind="mask")
_UNLABELLED = 255  # as metrics have it, among indexes of classes


@dataclass(frozen=True, kw_only=True)
class ImageSegmentation(PictureTask):
    """`ignored`: the value of a mask's pixels that count nowhere."""

    ignored: int | None = None

    name: ClassVar[str] = "image-segmentation"
    varied: ClassVar[tuple[str, ...]] = ("image",)
    placed: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, MASK)
    counts_tokens: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 8

    @property
    def metrics(self) -> tuple[str, ...]:
        return "mean_iou", "dice"

    def labels(self, rows: Dataset) -> list[str]:
        found = self._values(rows)
        if not 2 <= len(found) <= _UNLABELLED:
            raise InputError(
                f"image-segmentation: the masks have {len(found)} different values, "
                f"{found[:5]}: each is a class, of which there are 2 to {_UNLABELLED}"
            )
        return [str(value) for value in found]

    def _values(self, rows: Dataset) -> list[int]:
        found = {int(v) for cell in rows["mask"] for v in np.unique(media.mask(cell))}
        return sorted(found - {self.ignored})

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return models.in_own_order(name, labels)

    def processor(self, model: str) -> Pictures:
        pictures = self._processor(model)
        pictures.processor.do_center_crop = False  # what is cut off would have no answer
        return pictures

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
            "AutoModelForSemanticSegmentation", name, config, dtype, dropout=dropout
        )
        hold_statistics(model)
        processor.dtype = dtype
        return model, models.with_head(name, model, fresh, labels)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def encode(
        self, rows: Dataset, processor: Pictures, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples: list[dict[str, Any]] = [{"image": cell, "length": 1} for cell in rows["image"]]
        if labels is not None:
            self.check(rows, labels, "the data")
            for example, cell in zip(examples, rows["mask"], strict=True):
                example["labels"] = cell, labels
        return shortest_first(examples)

    def collate(
        self, examples: Sequence[Mapping[str, Any]], processor: Pictures
    ) -> dict[str, Tensor]:
        """Pixels (batch, channels, height, width); `sizes` (batch, 4), height and width of the
        picture in it and of itself; labels (batch, height, width)."""
        cells = [example["image"] for example in examples]
        pixels, there = processor.batch(cells)
        seen = torch.stack([there.amax(2).sum(1), there.amax(1).sum(1)], -1)
        own = torch.tensor([processor.size(cell) for cell in cells])
        batch = {"pixel_values": pixels, "sizes": torch.cat([seen, own], -1)}
        if "labels" in examples[0]:
            labels = torch.full_like(there, _UNLABELLED)
            for i, (height, width) in enumerate(seen.tolist()):
                mask = _kept(examples[i]["labels"], processor)
                labels[i, :height, :width] = _resized(mask, height, width)
            batch["labels"] = labels
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        outputs, labels = model(pixel_values=batch["pixel_values"]), batch["labels"]
        logits = _enlarged(outputs.logits.float(), *labels.shape[1:])
        each = F.cross_entropy(logits, labels, ignore_index=_UNLABELLED, reduction="none")
        counts = (labels != _UNLABELLED).flatten(1).sum(1).clamp(min=1)
        return (each.flatten(1).sum(1) / counts).mean(), outputs

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        return self.rows_of(model(pixel_values=batch["pixel_values"]), batch)

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """The best class of each pixel of each picture, (height, width) bytes."""
        logits = _enlarged(outputs.logits.float(), *batch["pixel_values"].shape[2:])
        return [
            _enlarged(one[None, :, :height, :width], *own)[0].argmax(0).byte().cpu().numpy()
            for one, (height, width, *own) in zip(logits, batch["sizes"].tolist(), strict=True)
        ]

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[np.ndarray]:
        """Indexes of labels."""
        return list(outputs)

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[np.ndarray]:
        return [classes(media.mask(cell), labels) for cell in rows["mask"]]

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        return [
            {
                "image": self.shown(rows, i),
                "size": list(found.shape),
                "shares": {
                    label: round(float((found == k).mean()), 6) for k, label in enumerate(labels)
                },
                "runs": runs(found, labels),
            }
            for i, found in enumerate(outputs)
        ]

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        known_labels([str(value) for value in self._values(rows)], labels, where)


def _kept(labels: tuple[Any, Sequence[str]], processor: Pictures) -> np.ndarray:
    cell, known = labels
    return processor.keep(("mask", cell), lambda: classes(media.mask(cell), known))


def classes(mask: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(height, width) indexes of labels, and 255 where a pixel has none of them."""
    out = np.full(mask.shape, _UNLABELLED, dtype=np.uint8)
    for index, label in enumerate(labels):
        out[mask == int(label)] = index
    return out


def runs(found: np.ndarray, labels: Sequence[str]) -> list[list[Any]]:
    """[label, pixels] from the upper left corner, line after line."""
    flat = found.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [len(flat)]]))
    return [[labels[flat[s]], int(n)] for s, n in zip(starts, lengths, strict=True)]


def _enlarged(logits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)


def _resized(mask: np.ndarray, height: int, width: int) -> Tensor:
    """To the nearest pixel: classes have no mean."""
    given = torch.from_numpy(mask)[None, None]
    return F.interpolate(given, (height, width), mode="nearest-exact")[0, 0].long()
