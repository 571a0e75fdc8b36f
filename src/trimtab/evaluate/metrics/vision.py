"""Metrics of pictures: which class each pixel has, and where the objects are.

    IoU of a class    |A ∩ B| / |A ∪ B|, over the pixels of all images together
    Dice of a class   2 |A ∩ B| / (|A| + |B|), which is F1 over pixels
    mean IoU, Dice    the mean over the classes that occur among predictions or references
                      (Everingham et al., "The PASCAL Visual Object Classes Challenge", 2010);
                      scikit-learn, given how often each pair of classes met in a pixel
    mAP               mean over classes and over IoU thresholds 0.50, 0.55, …, 0.95 of the mean
                      precision at 101 recalls, of at most 100 boxes an image (Lin et al.,
                      "Microsoft COCO", 2014); pycocotools. Boxes are matched once an image; a
                      resample ranks those of the images drawn again.

Pixels whose reference is 255 (PASCAL's border) or negative count nowhere.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics.labels import macro_f1_of
from trimtab.evaluate.metrics.metric import (
    Chosen,
    Column,
    Metric,
    divide,
    library,
    mean_defined,
)

UNLABELLED = 255
_ANY_SIZE = [0, 1e5**2]  # of a box, in pixels: COCO's range "all"


# Maps of classes


def pairs(prediction: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the pixels that count: predicted, true."""
    found, true = np.asarray(prediction), np.asarray(reference)
    if found.shape != true.shape:
        raise InputError(
            f"a map of {found.shape} pixels does not fit its reference of {true.shape}: "
            "resize the prediction to the reference"
        )
    counts = (true >= 0) & (true != UNLABELLED)
    return found[counts].astype(np.int64), true[counts].astype(np.int64)


def confusion(found: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """(true, predicted): in how many pixels they met."""
    return np.bincount(true * classes + found, minlength=classes**2).reshape(classes, classes)


def _tables(predictions: Column, references: Column) -> Iterator[np.ndarray]:
    """An image's confusion after the other: the maps are large, and none is kept as integers."""
    largest = (
        int(np.max(of, initial=0)) for side in _counted(predictions, references) for of in side
    )
    classes = 1 + max(largest, default=0)
    for side in _counted(predictions, references):
        yield confusion(*side, classes)


def _counted(predictions: Column, references: Column) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (pairs(*one) for one in zip(predictions, references, strict=True))


def class_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, 3 classes): pixels predicted and true, predicted, true."""
    rows = [
        np.concatenate([np.diag(table), table.sum(0), table.sum(1)])
        for table in _tables(predictions, references)
    ]
    return np.array(rows, dtype=float)


def mean_iou_of(totals: np.ndarray) -> np.ndarray:
    both, found, true = np.split(totals, 3, axis=-1)
    return mean_defined(divide(both, found + true - both))


def _by_classes(name: str, score: str, of: Callable, description: str) -> Metric:
    def compute(predictions: Column, references: Column) -> float:
        table: Any = sum(_tables(predictions, references))
        true, found = np.nonzero(table)
        if not len(true):
            return np.nan
        by = getattr(library("sklearn.metrics"), score)
        return by(true, found, sample_weight=table[true, found], average="macro")

    def each(prediction: Any, reference: Any) -> float:
        return float(of(class_sums([prediction], [reference])[0]))

    return Metric(
        name=name, description=description, compute=compute, each=each, sums=class_sums, of=of
    )


# Boxes


def _annotations(images: Column, numbers: dict[Hashable, int]) -> list[dict[str, Any]]:
    """As COCO has them, with scores where there are any; ids from 1, since 0 means no match."""
    out: list[dict[str, Any]] = []
    for image, of in enumerate(images):
        boxes = np.asarray(of["boxes"], dtype=float).reshape(-1, 4)
        scores = of.get("scores", [1.0] * len(boxes))
        crowds = of.get("iscrowd", [0] * len(boxes))
        for box, label, score, crowd in zip(boxes, of["labels"], scores, crowds, strict=True):
            out.append(
                {
                    "id": len(out) + 1,
                    "image_id": image,
                    "category_id": numbers.setdefault(_plain(label), len(numbers)),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "score": float(score),
                    "iscrowd": int(crowd),
                }
            )
    return out


def _plain(label: Any) -> Hashable:
    """A number out of a tensor or array, as the number that it is."""
    return label.item() if hasattr(label, "item") else label


def _coco(n: int, annotations: list[dict[str, Any]], classes: int) -> Any:
    coco = library("pycocotools.coco").COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(n)],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _matched(predictions: Column, references: Column) -> Any:
    """pycocotools' evaluation, with boxes matched image by image. It prints: call it in silence."""
    numbers: dict[Hashable, int] = {}
    true, found = _annotations(references, numbers), _annotations(predictions, numbers)
    n, classes = len(references), len(numbers)
    evaluation = library("pycocotools.cocoeval").COCOeval(
        _coco(n, true, classes), _coco(n, found, classes), "bbox"
    )
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [_ANY_SIZE], ["all"]
    evaluation.evaluate()
    return evaluation


def _silence() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(io.StringIO())


def _mean_average_precision(predictions: Column, references: Column) -> float:
    if not any(len(of["labels"]) for of in references):
        return np.nan
    with _silence():
        evaluation = _matched(predictions, references)
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _prepared(predictions: Column, references: Column) -> Chosen:
    if not any(len(of["labels"]) for of in references):
        return lambda drawn: np.nan
    with _silence():
        evaluation = _matched(predictions, references)
    evaluation.params.maxDets = [100]
    n, matches = len(references), np.array(evaluation.evalImgs, dtype=object)  # classes × images

    def at(drawn: np.ndarray) -> float:
        evaluation.evalImgs = matches.reshape(-1, n)[:, drawn].ravel().tolist()
        with _silence():
            evaluation.accumulate()
        precision = evaluation.eval["precision"]
        there = precision[precision > -1]
        return float(there.mean()) if len(there) else np.nan

    return at


VISION = (
    _by_classes("mean_iou", "jaccard_score", mean_iou_of, "mean IoU of classes (scikit-learn)"),
    _by_classes("dice", "f1_score", macro_f1_of, "mean Dice of classes (scikit-learn)"),
    Metric(
        name="mean_average_precision",
        description="mAP of boxes at IoU 0.50 to 0.95 (COCO; pycocotools)",
        compute=_mean_average_precision,
        prepare=_prepared,
        resamples=200,  # of which each ranks all boxes again
    ),
)
