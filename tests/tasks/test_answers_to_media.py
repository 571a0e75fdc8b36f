"""Answers to pictures and recordings: what counts in the loss, and runs that learn to answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pairs
import torch
from datasets import Dataset

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tasks.tokens import IGNORED
from trimtab.tune.config import Config
from trimtab.tune.run import tune

ASKED = "what is it ?"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny_pairs.write_llava(folder / "llava")
    tiny_pairs.write_listener(folder / "listener")
    tiny_pairs.write(folder / "vit", "vit")
    file = tiny_pairs.pictures(folder / "pictures", "asked.jsonl", count=24)
    rows = [json.loads(line) for line in file.read_text("utf8").splitlines()]
    asked = [{"image": one["image"], "prompt": ASKED, "answer": one["text"]} for one in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), "utf8")
    tiny_pairs.sounds(folder / "sounds", "heard.jsonl")
    return folder


GIVEN = {
    "image-text-to-text": ("llava", "pictures/asked.jsonl", "image"),
    "audio-text-to-text": ("listener", "sounds/heard.jsonl", "audio"),
}


def opened(places: Path, name: str, **options: Any) -> tuple[Any, Any, Any, Dataset]:
    model, file, medium = GIVEN[name]
    task = lookup(name, options)
    rows = list(map(json.loads, (places / file).read_text("utf8").splitlines()))[:3]
    for row, extra in zip(rows, (" of", "", " of red"), strict=True):  # of different lengths
        row[medium] = str((places / file).parent / row[medium])
        row["answer"] += extra
    processor = task.processor(str(places / model))
    made, fresh = task.model(str(places / model), [], processor, torch.float32, dropout=False)
    assert fresh == []
    return task, made.eval(), processor, Dataset.from_list(rows)


@pytest.mark.parametrize("name", GIVEN)
def test_a_batch_is_its_rows_one_by_one(places: Path, name: str) -> None:
    """Padding changes no likelihood, and the loss is their sum over the tokens that count."""
    task, model, processor, rows = opened(places, name)
    examples = task.encode(rows, processor, [], 0).examples
    batch = task.collate(examples, processor)
    with torch.no_grad():
        together = task.ask(model, batch, processor)
        alone = [task.ask(model, task.collate([one], processor), processor)[0] for one in examples]
        loss = float(task.loss(model, batch)[0])
    assert together.tolist() == [pytest.approx(one.tolist(), rel=1e-4) for one in alone]
    assert loss == pytest.approx(together[:, 0].sum() / together[:, 1].sum(), rel=1e-4)
    counted = (batch["labels"] != IGNORED).sum(1).tolist()
    assert counted == [len(example["answer"]) for example in examples]
    kept = batch["labels"] != IGNORED
    assert (batch["labels"][kept] == batch["input_ids"][kept]).all()


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_generated_does_not_depend_on_the_batch(places: Path, name: str) -> None:
    task, model, processor, rows = opened(places, name, generate=True, max_new_tokens=4)
    examples = task.encode(rows, processor, None, 0).examples
    with torch.no_grad():
        together = task.ask(model, task.collate(examples, processor), processor)
        alone = [task.ask(model, task.collate([one], processor), processor)[0] for one in examples]
    texts = [task.answers([ids], rows, [], processor) for ids in together]
    assert texts == [task.answers([ids], rows, [], processor) for ids in alone]


@pytest.mark.parametrize("name", GIVEN)
def test_a_run_learns_to_answer(places: Path, name: str, quick: Callable[..., Config]) -> None:
    model, file, medium = GIVEN[name]
    config = quick(
        model=places / model,
        data=places / file,
        task=name,
        target=["text", "connector"],
        lr=0.02,
        max_steps=20,
        eval_every=10,
    )
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "perplexity"
    assert metrics["test"]["high"] < 0.8 * metrics["baselines"]["base"]["low"]
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    told = predict(config.out, str(places / file))
    assert len(told) == 24
    assert set(told[0]) == {medium, "generated"}


def test_a_model_without_a_reader(places: Path) -> None:
    with pytest.raises(InputError, match="no processor of texts with images"):
        lookup("image-text-to-text").processor(str(places / "vit"))
