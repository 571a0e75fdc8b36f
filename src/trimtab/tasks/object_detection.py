"""Object detection: boxes around the objects of a picture, with a label each.

    trimtab tune --task object-detection --model detr --data cells/ --out runs/cells

of a folder in Pascal VOC's layout, a COCO file, or lines {"image": "a.jpg", "boxes": […]}.

Models such as DETR (Carion et al. 2020, arXiv:2005.12872) answer with a set of boxes. Their loss
pairs these with the true ones before it compares them, and divides by the number of objects in the
batch: it is the model's own, and parts of a batch, each by itself, would give another.
Boxes are centre, width and height, as shares of the picture without its padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.image_classification import IMAGE
from trimtab.tasks.pictures import Pictures, PictureTask, hold_statistics
from trimtab.tasks.task import Batch, Encoded, Outputs, shortest_first
from trimtab.tasks.text_classification import known_labels, numbers_first

if TYPE_CHECKING:
    from datasets import Dataset

BOXES = Column("boxes", ("objects", "annotations"), kind="boxes")
_SURE = 0.5  # the score from which a box is told


@dataclass(frozen=True, kw_only=True)
class ObjectDetection(PictureTask):
    """`sure`: the least score of the boxes that `predict` tells; the metric ranks all."""

    sure: float = _SURE

    name: ClassVar[str] = "object-detection"
    varied: ClassVar[tuple[str, ...]] = ("image",)
    placed: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (IMAGE, BOXES)
    by_token: ClassVar[bool] = True  # the loss is a mean over objects
    counts_tokens: ClassVar[bool] = False
    eval_batch: ClassVar[int] = 8
    # bf16 tells places to three pixels of a thousand, and cannot compare pairs of boxes
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("mean_average_precision",)

    def labels(self, rows: Dataset) -> list[str]:
        found = {label for cell in rows["boxes"] for label in cell["labels"]}
        if not found:
            raise InputError("object-detection: the training pictures have no boxes to learn from")
        return sorted(found, key=numbers_first)

    def order(self, name: str, labels: Sequence[str]) -> list[str]:
        return models.in_own_order(name, labels)

    def processor(self, model: str) -> Pictures:
        pictures = self._processor(model, padded=True)
        if not hasattr(pictures.processor, "post_process_object_detection"):
            raise InputError(f"model {model!r} does not detect objects: its processor has no boxes")
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
            "AutoModelForObjectDetection",
            name,
            config,
            dtype,
            dropout=dropout,
            attn_implementation="eager",  # to begin with: the backbones of some know no other
        )
        hold_statistics(model)
        processor.masks = "pixel_mask" in inspect.signature(model.forward).parameters
        return model, _of_labels(name, model, fresh, labels)

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def encode(
        self, rows: Dataset, processor: Pictures, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        examples: list[dict[str, Any]] = [{"image": cell, "length": 1} for cell in rows["image"]]
        if labels is not None:
            index = {label: i for i, label in enumerate(labels)}
            for example, cell in zip(examples, rows["boxes"], strict=True):
                example["labels"] = [index[label] for label in cell["labels"]], cell["boxes"]
        return shortest_first(examples)

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Pictures) -> dict[str, Any]:
        """(batch, channels, height, width) pixels, a mask of them where the model reads one, and
        labels: of each picture classes (objects,) and boxes (objects, 4)."""
        pixels, mask = processor.batch([example["image"] for example in examples])
        batch: dict[str, Any] = {"pixel_values": pixels}
        if processor.masks:
            batch["pixel_mask"] = mask
        if "labels" in examples[0]:
            batch["labels"] = [_target(example, processor) for example in examples]
        return batch

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """(n, queries, classes + 4): scores before the softmax, and boxes."""
        return torch.cat([outputs.logits.float(), outputs.pred_boxes.float()], -1).cpu().numpy()

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Pictures
    ) -> list[dict[str, Any]]:
        """Of each picture all boxes (n, 4): left, top, width and height in pixels."""
        sizes = [processor.size(cell) for cell in rows["image"]]
        found = torch.from_numpy(np.asarray(outputs))
        given = SimpleNamespace(logits=found[..., :-4], pred_boxes=found[..., -4:])
        made = processor.processor.post_process_object_detection(
            given, threshold=0.0, target_sizes=torch.tensor(sizes)
        )
        return [_answer(one, labels) for one in made]

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[dict[str, Any]]:
        return list(rows["boxes"])

    def told(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Pictures
    ) -> list:
        answers = self.answers(outputs, rows, labels, processor)
        return [
            {"image": self.shown(rows, i), "objects": _told(answer, self.sure)}
            for i, answer in enumerate(answers)
        ]

    def check(self, rows: Dataset, labels: Sequence[str], where: str) -> None:
        known_labels([one for cell in rows["boxes"] for one in cell["labels"]], labels, where)


def _of_labels(name: str, model: Any, fresh: list[str], labels: Sequence[str]) -> list[str]:
    """The parameters to train whole: a new classifier, where the labels are others than the
    checkpoint's. What predicts boxes goes on from what it knows."""
    if models.own_labels(name) == list(labels):
        return fresh
    classes = {"class_embed", "class_labels_classifier", "class_head"}
    own = [key for key, _ in model.named_parameters() if classes & set(key.split("."))]
    return sorted({*fresh, *own})


def _target(example: Mapping[str, Any], processor: Pictures) -> dict[str, Tensor]:
    classes, boxes = example["labels"]
    height, width = processor.size(example["image"])
    left, top, wide, high = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4).unbind(-1)
    middle = torch.stack([left + wide / 2, top + high / 2, wide, high], -1)
    return {
        "class_labels": torch.tensor(classes, dtype=torch.long),
        "boxes": middle / torch.tensor([width, height, width, height]),
    }


def _answer(made: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Any]:
    left, top, right, bottom = made["boxes"].unbind(-1)
    boxes = torch.stack([left, top, right - left, bottom - top], -1)
    known = made["labels"] < len(labels)  # a classifier may have classes that nobody named
    return {
        "boxes": boxes[known].numpy(),
        "labels": [labels[i] for i in made["labels"][known]],
        "scores": made["scores"][known].numpy(),
    }


def _told(answer: Mapping[str, Any], sure: float) -> list[dict[str, Any]]:
    found = zip(answer["scores"], answer["labels"], answer["boxes"], strict=True)
    return [
        {
            "label": label,
            "score": round(float(score), 6),
            "box": [round(float(side), 2) for side in box],
        }
        for score, label, box in sorted(found, key=lambda one: -one[0])
        if score >= sure
    ]
