"""Pictures with texts, and vectors of pictures: losses, ranks, and runs that learn colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pairs
import torch
from datasets import Dataset

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.config import Config
from trimtab.tune.run import tune

TASK = lookup("zero-shot-image-classification")
VECTORS = lookup("image-feature-extraction")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for kind in ("clip", "siglip", "vit"):
        tiny_pairs.write(folder / kind, kind)
    tiny_pairs.pictures(folder / "data", "shown.jsonl")
    tiny_pairs.pictures(folder / "data", "labelled.jsonl", count=60, key="label")
    return folder


def opened(places: Path, kind: str, count: int) -> tuple[Any, dict[str, Any]]:
    lines = (places / "data" / "shown.jsonl").read_text("utf8").splitlines()[:count]
    rows = list(map(json.loads, lines))
    data = Dataset.from_list(
        [{**row, "image": str(places / "data" / row["image"])} for row in rows]
    )
    processor = TASK.processor(str(places / kind))
    model, fresh = TASK.model(str(places / kind), [], processor, torch.float32, dropout=False)
    assert fresh == []
    return model.eval(), TASK.collate(TASK.encode(data, processor, [], 12).examples, processor)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_loss_of_different_texts_is_the_models_own(places: Path, kind: str) -> None:
    model, batch = opened(places, kind, 3)  # three colours: three texts
    own = model(**{k: x for k, x in batch.items() if k != "labels"}, return_loss=True)
    torch.testing.assert_close(TASK.loss(model, batch)[0], own.loss)
    assert (batch["input_ids"].shape[1] == 12) == (kind == "siglip")  # it reads the last place


def test_a_text_that_two_pictures_share_is_no_negative(places: Path) -> None:
    model, batch = opened(places, "clip", 4)  # the fourth has the first one's text
    z = model(**{k: x for k, x in batch.items() if k != "labels"}).logits_per_image
    same = batch["labels"][:, None] == batch["labels"][None]
    expected = []
    for side in (z, z.T):
        for i in range(4):
            kept = [j for j in range(4) if j == i or not same[i, j]]
            expected.append(side[i, kept].logsumexp(0) - side[i, i])
    torch.testing.assert_close(TASK.loss(model, batch)[0], torch.stack(expected).mean())


def test_ranks_are_among_what_is_of_another_text() -> None:
    rows = Dataset.from_dict({"image": ["x"] * 3, "text": ["red", "blue", "red"]})
    red, blue = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    outputs = np.array([[red, red], [0.6 * red + 0.8 * blue, blue], [blue, red]])
    found = TASK.answers(outputs, rows, [], None)
    assert [one["image_to_text"] for one in found] == [1, 1, 2]
    assert [one["text_to_image"] for one in found] == [1, 2, 2], "of red's pictures none counts"
    told = TASK.told(outputs, rows, [], None)
    assert [one["nearest"] for one in told] == ["red", "blue", "blue"]


def test_a_model_that_does_not_read(places: Path) -> None:
    with pytest.raises(InputError, match="no encoders of pictures and of texts"):
        TASK.processor(str(places / "vit"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_run_learns_which_text_tells_of_a_picture(
    places: Path, kind: str, quick: Callable[..., Config]
) -> None:
    config = quick(
        model=places / kind,
        data=places / "data" / "shown.jsonl",
        task=TASK.name,
        target=["vision", "text"],
        method_arg={"rank": 8},
        lr=0.02,
        max_steps=40,
        eval_every=20,
    )
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "image_to_text_recall_at_1"
    assert metrics["test"]["value"] == 1.0
    assert metrics["metrics"]["text_to_image_recall_at_1"]["adapted"] == 1.0
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    told = predict(config.out, str(places / "data" / "shown.jsonl"))
    assert all(one["nearest"] == one["text"] for one in told)


def test_vectors_of_pictures_come_together(places: Path, quick: Callable[..., Config]) -> None:
    config = quick(
        model=places / "vit",
        data=places / "data" / "labelled.jsonl",
        task=VECTORS.name,
        lr=0.01,
        max_steps=20,
        eval_every=10,
    )
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "hit_rate_at_1"
    assert "pooler" not in str(metrics["notes"])
    found = predict(config.out, str(places / "data" / "labelled.jsonl"))
    vectors = np.array([one["vector"] for one in found])
    assert vectors.shape == (60, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_a_temperature_that_is_none() -> None:
    with pytest.raises(InputError, match="temperature is above 0, not 0"):
        lookup(VECTORS.name, {"temperature": 0})
