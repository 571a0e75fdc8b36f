"""Reptile: what a round does, and that few examples go further from the start that it finds."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_models import shared
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trimtab
from trimtab.core.errors import InputError
from trimtab.recipes.reptile import TaskBatches, adapt, own_loss, reptile
from trimtab.tasks.models import resolve

WAYS, SHOTS, STEPS = 3, 3, 4


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return SimpleNamespace(loss=(self.map(x)[:, 0] - y).square().mean())


def line(seed: int) -> Line:
    torch.manual_seed(seed)
    model = Line()
    trimtab.attach(model, trimtab.LoRA(rank=2), "map")
    return model


def batches(seed: int) -> TaskBatches:
    drawn = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 3, generator=drawn), torch.randn(8, generator=drawn)
    return lambda n: [{"x": x, "y": y}] * n


def test_a_round_goes_a_part_of_the_way() -> None:
    """φ + ε (φ̃ - φ), by hand."""
    model, other, task = line(0), line(0), batches(1)
    before = [one.detach().clone() for one in trimtab.parameters(model)]
    adapt(other, task(3), lr=0.1)
    list(reptile(model, [task], rounds=1, steps=3, lr=0.1, step=0.25))
    for now, old, led in zip(
        trimtab.parameters(model), before, trimtab.parameters(other), strict=True
    ):
        torch.testing.assert_close(now, old + 0.25 * (led - old))
        assert not torch.equal(now, old)


def test_the_same_seed_finds_the_same_start() -> None:
    tasks = [batches(n) for n in range(3)]
    found = []
    for _ in range(2):
        model = line(0)
        list(reptile(model, tasks, rounds=4, steps=2, seed=7))
        found.append([one.detach().clone() for one in trimtab.parameters(model)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_cannot_be_learnt_from() -> None:
    with pytest.raises(InputError, match="0 tasks"):
        list(reptile(line(0), []))
    with pytest.raises(InputError, match="gave 1 batches, where 2 were asked for"):
        list(reptile(line(0), [lambda n: batches(0)(1)], rounds=1, steps=2))


@pytest.fixture(scope="module")
def intents() -> dict[str, list[str]]:
    """What people ask a bank, by intent."""
    with shared("data", "banking77", "train.csv").open(encoding="utf8", newline="") as file:
        rows = [(row["category"], row["text"]) for row in csv.DictReader(file)]
    found: dict[str, list[str]] = {}
    for intent, text in rows:
        if len(text) < 40:
            found.setdefault(intent, []).append(text)
    return found


def examples(
    texts: dict[str, list[str]], chosen: Sequence[str], drawn: random.Random, tokenizer: Any
) -> dict[str, torch.Tensor]:
    """A batch: some texts of each of the intents, which are labels by their order."""
    picked = [(text, i) for i, one in enumerate(chosen) for text in drawn.sample(texts[one], SHOTS)]
    batch = tokenizer([text for text, _ in picked], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([label for _, label in picked])}


def test_few_shots_of_unseen_intents_go_further(intents: dict[str, list[str]]) -> None:
    """The loss on other examples after the same few steps, from a random start and from Reptile's,
    over tasks of intents that Reptile never saw."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("minilm"))
    names = sorted(name for name, texts in intents.items() if len(texts) >= 2 * SHOTS)
    random.Random(0).shuffle(names)
    seen, unseen = names[:24], names[24:36]

    def task(n: int) -> list[dict[str, torch.Tensor]]:
        chosen = drawn.sample(seen, WAYS)
        return [examples(intents, chosen, drawn, tokenizer) for _ in range(n)]

    drawn = random.Random(1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(resolve("minilm"), num_labels=WAYS)
    trimtab.attach(model, trimtab.LoRA(rank=4), ["query", "value"], train="classifier")
    starts = [_values(model)]
    list(reptile(model, [task], rounds=15, steps=STEPS, lr=5e-3))
    starts.append(_values(model))
    losses = []
    for start in starts:
        held_out = random.Random(2)
        found = []
        for first in range(0, len(unseen), WAYS):
            chosen = unseen[first : first + WAYS]
            _set(model, start)
            few = examples(intents, chosen, held_out, tokenizer)
            adapt(model, [few] * STEPS, lr=5e-3)
            with torch.no_grad():
                others = examples(intents, chosen, held_out, tokenizer)
                found.append(float(own_loss(model.eval(), others)))
        losses.append(sum(found) / len(found))
    assert losses[1] < 0.97 * losses[0]


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [one.detach().clone() for one in trimtab.parameters(model)]


@torch.no_grad()
def _set(model: nn.Module, values: list[torch.Tensor]) -> None:
    for one, value in zip(trimtab.parameters(model), values, strict=True):
        one.copy_(value)
