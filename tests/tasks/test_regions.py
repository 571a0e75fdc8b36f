"""Boxes and masks: what the loss is given, how answers are read, runs on real pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from places import shared
from tiny_vision import written
from torch.nn import functional as F

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.image_segmentation import classes, runs
from trimtab.tune.run import tune

BOXES = [
    {"boxes": [[10.0, 5.0, 30.0, 20.0], [50.0, 40.0, 20.0, 15.0]], "labels": ["cell", "dust"]},
    {"boxes": [], "labels": []},
]


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def picture(width: int, height: int) -> bytes:
    return png(np.random.default_rng(width).integers(0, 256, (height, width, 3)))


# Boxes


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("detr", "yolos", "segformer"):
        written(name, folder)
    return folder


def of_boxes() -> Dataset:
    return Dataset.from_dict({"image": [picture(80, 60), picture(60, 80)], "boxes": BOXES})


def test_boxes_come_back_as_they_went(seeing: Path) -> None:
    """What the loss is given, were it the model's answer, is what the metric expects."""
    task, rows = lookup("object-detection"), of_boxes()
    processor, labels = task.processor(str(seeing / "detr")), task.labels(rows)
    batch = task.collate(task.encode(rows, processor, labels, 0).examples, processor)
    assert labels == ["cell", "dust"]
    assert [len(one["class_labels"]) for one in batch["labels"]] == [2, 0]
    logits, boxes = torch.full((2, 3, 3), -9.0), torch.full((2, 3, 4), 0.5)
    for i, one in enumerate(batch["labels"]):
        n = len(one["boxes"])
        boxes[i, :n] = one["boxes"]
        logits[i, range(n), one["class_labels"]] = 9.0
        logits[i, n:, 2] = 9.0  # nothing
    outputs = task.rows_of(SimpleNamespace(logits=logits, pred_boxes=boxes), batch)
    answers = task.answers(outputs, rows, labels, processor)
    references = task.references(rows, labels)
    assert METRICS["mean_average_precision"].value(answers, references) == pytest.approx(1)
    told = task.told(outputs, rows, labels, processor)
    assert [one["label"] for one in told[0]["objects"]] == ["cell", "dust"]
    assert told[0]["objects"][0]["box"] == pytest.approx([10, 5, 30, 20], abs=0.01)
    assert told[1] == {"image": "row 2", "objects": []}


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_the_loss_is_the_models_own(seeing: Path, name: str) -> None:
    task, rows = lookup("object-detection"), of_boxes()
    processor = task.processor(str(seeing / name))
    model, fresh = task.model(
        str(seeing / name), ["cell", "dust"], processor, torch.float32, dropout=False
    )
    assert {key.split(".")[0] for key in fresh} == {"class_labels_classifier"}
    batch = task.collate(task.encode(rows, processor, ["cell", "dust"], 0).examples, processor)
    assert ("pixel_mask" in batch) == (name == "detr")
    loss, outputs = task.loss(model, batch)
    parts = outputs.loss_dict
    assert float(loss.detach()) == pytest.approx(
        float((parts["loss_ce"] + 5 * parts["loss_bbox"] + 2 * parts["loss_giou"]).detach())
    )


def test_pictures_without_boxes_teach_nothing() -> None:
    rows = Dataset.from_dict({"image": [picture(8, 8)], "boxes": [BOXES[1]]})
    with pytest.raises(InputError, match="no boxes"):
        lookup("object-detection").labels(rows)


def test_a_classifier_finds_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not detect objects"):
        lookup("object-detection").processor(str(written("resnet", tmp_path)))


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_a_detector_runs(
    quick: Callable[..., Any], seeing: Path, tmp_path: Path, name: str
) -> None:
    cells = shared("data", "bccd_detection")
    fields = {"task": "object-detection", "model": seeing / name, "data": cells}
    config = quick(**fields, skip_bad_rows=True, max_steps=2, eval_every=2, lr=1e-3)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "mean_average_precision"
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    new = tmp_path / "new.csv"
    new.write_text(f"image\n{cells}/JPEGImages/BloodImage_00000.jpg\n")
    (told,) = predict(config.out, str(new))
    assert told["image"].endswith("BloodImage_00000.jpg")
    assert all(one["label"] in ("Platelets", "RBC", "WBC") for one in told["objects"])
    row = {"image": told["image"], "boxes": [{"label": "ship", "box": [1, 1, 5, 5]}]}
    new.with_suffix(".jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="ship"):
        evaluate(config.out, str(new.with_suffix(".jsonl")), "test")


def test_a_box_outside_its_picture(quick: Callable[..., Any], seeing: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(80, 60))
    boxes = [{"label": "cell", "box": [70, 5, 30, 20]}]
    lines = [json.dumps({"image": "a.png", "boxes": boxes})] * 20
    (tmp_path / "cells.jsonl").write_text("\n".join(lines))
    config = quick(task="object-detection", model=seeing / "detr", data=tmp_path / "cells.jsonl")
    with pytest.raises(InputError, match="reaches beyond its image of 80 × 60"):
        tune(config, quiet=True)


# Masks


def of_masks(*sizes: tuple[int, int]) -> Dataset:
    """A mask of a frame of 0 around 255, with a line of 7."""
    masks = []
    for width, height in sizes:
        mask = np.zeros((height, width))
        mask[10:-10, 10:-10], mask[20] = 255, 7
        masks.append(png(mask))
    return Dataset.from_dict({"image": [picture(*size) for size in sizes], "mask": masks})


def test_values_of_masks_are_classes() -> None:
    rows = of_masks((50, 40))
    assert lookup("image-segmentation").labels(rows) == ["0", "7", "255"]
    ignoring = lookup("image-segmentation", {"ignored": 7})
    assert ignoring.labels(rows) == ["0", "255"]
    (found,) = ignoring.references(rows, ["0", "255"])
    assert found[20, 0] == 255
    assert set(np.unique(found)) == {0, 1, 255}


def test_one_class_is_no_segmentation() -> None:
    with pytest.raises(InputError, match="1 different values"):
        lookup("image-segmentation", {"ignored": 255}).labels(
            Dataset.from_dict({"image": [picture(9, 9)], "mask": [png(np.ones((9, 9)))]})
        )


def test_masks_of_several_sizes_are_answered_at_their_own(seeing: Path) -> None:
    """Scores that are right at the size that the model sees are right, up to borders, at that of
    the picture."""
    task, rows = lookup("image-segmentation", {"ignored": 7}), of_masks((90, 70), (60, 120))
    processor, labels = task.processor(str(seeing / "segformer")), ["0", "255"]
    batch = task.collate(task.encode(rows, processor, labels, 0).examples, processor)
    assert batch["labels"].shape == (2, 64, 64)
    right = F.one_hot(batch["labels"].clamp(max=1), 2).permute(0, 3, 1, 2).float() * 20 - 10
    loss, outputs = task.loss(lambda **_: SimpleNamespace(logits=right), batch)
    assert float(loss) < 1e-6
    found = task.rows_of(outputs, batch)
    assert [one.shape for one in found] == [(70, 90), (120, 60)]
    answers = task.answers(found, rows, labels, processor)
    assert METRICS["mean_iou"].value(answers, task.references(rows, labels)) > 0.9


def test_unlabelled_pixels_have_no_loss(seeing: Path) -> None:
    task, rows = lookup("image-segmentation", {"ignored": 7}), of_masks((64, 64))
    processor = task.processor(str(seeing / "segformer"))
    batch = task.collate(task.encode(rows, processor, ["0", "255"], 0).examples, processor)
    logits = torch.randn(1, 2, 64, 64)
    there = batch["labels"] != 255
    assert int((~there).sum()) == 64
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[there], batch["labels"][there])
    loss, _ = task.loss(lambda **_: SimpleNamespace(logits=logits), batch)
    torch.testing.assert_close(loss, expected)


def test_runs_of_pixels() -> None:
    found = np.array([[0, 0, 1], [1, 1, 0]], dtype=np.uint8)
    assert runs(found, ["a", "b"]) == [["a", 2], ["b", 3], ["a", 1]]
    assert classes(np.array([[3, 9]]), ["9"]).tolist() == [[255, 0]]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_segmenter_runs(
    quick: Callable[..., Any], seeing: Path, tmp_path: Path, method: str
) -> None:
    """Batch norms in its head are new, and stay as they were drawn."""
    membranes = shared("data", "isbi_membrane_segmentation")
    fields = {"task": "image-segmentation", "model": seeing / "segformer", "data": membranes}
    config = quick(**fields, method=method, max_steps=2, eval_every=2, lr=1e-2)
    metrics = tune(config, quiet=True)
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]
    assert set(again["metrics"]) == {"dice"}
    new = tmp_path / "new.csv"
    new.write_text(f"image\n{membranes}/image/0.png\n")
    (told,) = predict(config.out, str(new))
    assert sum(n for _, n in told["runs"]) == 512 * 512
    assert sum(told["shares"].values()) == pytest.approx(1)


def test_a_segmenter_learns_squares(
    quick: Callable[..., Any], seeing: Path, tmp_path: Path
) -> None:
    """Bright where the mask is: pixels and masks lie upon each other."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "squares" / folder).mkdir(parents=True)
    for i in range(40):
        x, y = rng.integers(0, 40, 2)
        mask = np.zeros((64, 64))
        mask[y : y + 24, x : x + 24] = 1
        (tmp_path / "squares" / "masks" / f"{i}.png").write_bytes(png(mask))
        seen = png(np.repeat((60 + 130 * mask)[..., None], 3, -1))
        (tmp_path / "squares" / "images" / f"{i}.png").write_bytes(seen)
    fields = {"task": "image-segmentation", "model": seeing / "segformer"}
    config = quick(**fields, data=tmp_path / "squares", max_steps=60, eval_every=60, lr=1e-2)
    metrics = tune(config, quiet=True)
    assert metrics["test"]["value"] > 0.8
