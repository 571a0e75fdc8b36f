"""Pairs of texts, several labels and numbers, beside the one label that all other tests train."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from places import shared

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.config import Config
from trimtab.tune.run import tune

ANIMALS, TOOLS = ("cat", "dog", "owl", "fox"), ("saw", "drill", "file", "plane")


def several(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        labels = [label for label in ("animal", "tool") if rng.random() < 0.6]
        words = [rng.choice(ANIMALS if label == "animal" else TOOLS) for label in labels]
        rows.append({"text": f"There was {' and '.join(words) or 'nothing'}.", "labels": labels})
    return rows


def numbers(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    counts = [rng.randint(1, 9) for _ in range(count)]
    return [{"text": " ".join(["very"] * n) + " good", "score": n / 2} for n in counts]


def pairs(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        one, other = rng.choice(ANIMALS), rng.choice(ANIMALS + TOOLS)
        label = "same" if other in ANIMALS else "other"
        rows.append({"sentence1": f"I saw a {one}", "sentence2": f"a {other}", "label": label})
    return rows


CASES: list[tuple[dict[str, str], Callable[[int], list[dict[str, Any]]], str, str]] = [
    ({"kind": "several"}, several, "micro_f1", "labels"),
    ({"kind": "number"}, numbers, "pearson", "value"),
    ({}, pairs, "accuracy", "label"),
]


@pytest.mark.parametrize(("options", "rows", "metric", "answer"), CASES, ids=["m", "n", "p"])
def test_it_learns_and_tells(
    options: dict[str, str],
    rows: Callable[[int], list[dict[str, Any]]],
    metric: str,
    answer: str,
    given: Callable[..., Path],
    quick: Callable[..., Config],
) -> None:
    every = rows(200)
    data = given(train=every[:140], validation=every[140:160], test=every[160:])
    config = quick(model="minilm", data=data, task_arg=options, max_steps=30, batch_size=16)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == metric
    assert metrics["test"]["value"] > 0.8
    assert metrics["gain_over"]["base"]["low"] > 0
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    told = predict(config.out, str(data / "test.jsonl"))
    assert len(told) == 40
    assert all(answer in row for row in told)


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_the_loss_is_the_formula(kind: str) -> None:
    task: Any = lookup("text-classification", {"kind": kind})
    logits = torch.randn(5, 1 if kind == "number" else 3).bfloat16()
    if kind == "one":
        labels = torch.tensor([0, 2, 1, 1, 0])
        law = -logits.float().log_softmax(-1)[torch.arange(5), labels].mean()
    elif kind == "several":
        labels = torch.randint(2, (5, 3)).float()
        p = logits.float().sigmoid()
        law = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    else:
        labels = torch.randn(5)
        law = (logits.float()[:, 0] - labels).square().mean()
    torch.testing.assert_close(task.loss_of(logits, labels), law)


def test_a_pair_is_read_as_the_model_was_trained() -> None:
    """Token types say which text is which, where the tokenizer has them."""
    task = lookup("text-classification")
    processor = task.processor("minilm")
    rows = Dataset.from_list([{"text": "a cat", "pair": "an owl", "label": "x"}])
    batch = task.collate(task.encode(rows, processor, None, 32).examples, processor)
    expected = processor("a cat", "an owl", return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["token_type_ids"], expected["token_type_ids"])


def test_only_what_is_too_long_is_cut() -> None:
    task = lookup("text-classification")
    processor = task.processor("minilm")
    rows = Dataset.from_list([{"text": "word " * 40}, {"text": "short"}, {"text": "word " * 6}])
    found = task.encode(rows, processor, None, 8)
    assert found.truncated == 1
    assert [example["length"] for example in found.examples] == [3, 8, 8]
    assert found.examples[-1]["input_ids"][-1] == processor.sep_token_id
    assert np.array_equal(found.restore(np.arange(3)), np.argsort(found.order))


def test_balanced_labels_count_alike(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    """Each label's weights add up to the same; a run says when labels are uneven, and the cure."""
    task = lookup("text-classification", {"weights": "balanced"})
    processor = task.processor("minilm")
    rows = [{"text": f"text {i}", "label": "rare" if i < 3 else "common"} for i in range(60)]
    encoded = task.encode_for_training(Dataset.from_list(rows), processor, ["common", "rare"], 16)
    batch: Any = task.collate(encoded.examples, processor)
    sums = [float(batch["weights"][batch["labels"] == i].sum()) for i in range(2)]
    assert sums == pytest.approx([30, 30])
    every = [
        {"text": f"text {i}", "label": "rare" if i % 20 == 0 else "common"} for i in range(200)
    ]
    data = given(train=every[:160], validation=every[160:180], test=every[180:])
    uneven = tune(quick(model="minilm", data=data, max_steps=2), quiet=True)
    assert any("weights=balanced" in note for note in uneven["notes"])
    balanced = {"out": str(data.parent / "even"), "task_arg": {"weights": "balanced"}}
    even = tune(quick(model="minilm", data=data, max_steps=2, **balanced), quiet=True)
    assert not any("weights=balanced" in note for note in even["notes"])


def test_a_careless_run_is_warned(given: Callable[..., Path], quick: Callable[..., Config]) -> None:
    every = pairs(60)
    data = given(train=every[:40], validation=every[40:50], test=every[50:])
    config = quick(
        model="minilm", data=data, max_steps=1, lr=1.0, target="re:.*layer\\.0.*query", rank=300
    )
    notes = " ".join(tune(config, quiet=True)["notes"])
    assert "far above what lora is known to need" in notes
    assert "of the model's 38 linear maps" in notes


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="one, several or number"):
        lookup("text-classification", {"kind": "two"})


def test_solubility_of_molecules(given: Callable[..., Path], quick: Callable[..., Config]) -> None:
    """Real numbers: MiniLM reads SMILES as text."""
    folder = shared("data", "molecules")
    (source,) = [path for path in folder.glob("*.csv") if "delaney" in path.name.lower()]
    with source.open(newline="", encoding="utf8") as file:
        lines = list(csv.DictReader(file))
    target = next(key for key in lines[0] if key.startswith("measured"))
    rows = [{"text": line["smiles"], "label": float(line[target])} for line in lines[:400]]
    data = given(train=rows[:300], validation=rows[300:350], test=rows[350:])
    config = quick(
        model="minilm", data=data, task_arg={"kind": "number"}, max_steps=40, batch_size=16
    )
    metrics = tune(config, quiet=True)
    assert metrics["test"]["value"] > metrics["baselines"]["base"]["value"]
    assert set(metrics["metrics"]) == {"spearman", "rmse"}


def test_a_metric_that_is_not_defined_ends_no_run(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    """Pearson's of labels that are all the same is none: the run ends with its first adapter, and
    says null."""
    every = [{"text": f"text {i}", "score": 1.0 if i >= 20 else i / 2} for i in range(40)]
    data = given(train=every[:24], validation=every[24:32], test=every[32:])
    config = quick(model="minilm", data=data, task_arg={"kind": "number"})
    metrics = tune(config, quiet=True)
    assert metrics["best_step"] == 3
    assert metrics["test"]["value"] is None
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]


def test_distillation_of_other_tasks_is_refused(
    given: Callable[..., Path], quick: Callable[..., Config]
) -> None:
    data = given(train=[{"tokens": ["a", "b"], "tags": ["O", "B-x"]}] * 12)
    told = {"task": "token-classification", "recipe": "distill", "teacher": "minilm"}
    with pytest.raises(InputError, match="one row of logits an example"):
        tune(quick(model="minilm", data=data, **told), quiet=True)
