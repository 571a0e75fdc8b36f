"""Next items: the loss at all places, ranks among all items, what was seen, errors by row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from examples.recommendation import ITEMS, shop, visits

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

TASK = "recommendation"
ROWS = {
    "items": [["item3", "item6", "item9", "item6"], ["item1", "item2"], ["item0", "item5", "item7"]]
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shop(tmp_path_factory.mktemp("shop")))


def opened(task: Any, name: str) -> tuple[Any, Any]:
    model, fresh = task.model(name, [], None, torch.float32, dropout=False)
    assert fresh == []
    return model.eval().requires_grad_(False), task.processor(name)


def test_the_loss_is_at_all_places(model: str) -> None:
    task = lookup(TASK)
    net, known = opened(task, model)
    encoded = task.encode(Dataset.from_dict(ROWS), known, [], 16)
    loss, outputs = task.loss(net, task.collate(encoded.examples, known))
    assert outputs.logits.shape == (3, 3, len(ITEMS))
    found = []
    for row in ROWS["items"]:
        ids = torch.tensor([[known.ids[item] for item in row]])
        p = net(input_ids=ids).logits[0].log_softmax(-1)
        found += [-float(p[t, ids[0, t + 1]]) for t in range(len(row) - 1)]
    assert float(loss) == pytest.approx(np.mean(found), rel=1e-5)


@pytest.mark.parametrize("repeats", [True, False])
def test_ranks_are_among_all_items(model: str, repeats: bool) -> None:
    task = lookup(TASK, {"repeats": repeats})
    net, known = opened(task, model)
    rows = Dataset.from_dict(ROWS)
    encoded = task.encode(rows, known, [], 16)
    batch = task.collate(encoded.examples, known)
    ranks = task.answers(encoded.restore(task.ask(net, batch, known)), rows, [], known)
    for row, rank in zip(ROWS["items"], ranks, strict=True):
        *given, last = [known.ids[item] for item in row]
        scores = net(input_ids=torch.tensor([given])).logits[0, -1]
        others = [i for i in range(len(ITEMS)) if repeats or i not in given]
        expected = 1 + sum(float(scores[i]) > float(scores[last]) for i in others)
        assert rank == (expected if last in others else None)


def test_of_a_long_history_the_last_items_are_read(model: str) -> None:
    task = lookup(TASK, {"repeats": False})
    known = task.processor(model)
    rows = Dataset.from_dict({"items": [ITEMS[:9]], "next": [ITEMS[20]]})
    encoded = task.encode(rows, known, [], 4)
    (example,) = encoded.examples
    assert example["input_ids"] == [5, 6, 7, 8]
    assert example["labels"] == [6, 7, 8, 20]
    assert encoded.truncated == 1
    assert task.collate([example], known)["barred"].sum() == 9
    (asked,) = task.encode(rows, known, None, 4).examples
    assert asked["input_ids"] == [5, 6, 7, 8]


def test_visitors_are_learned(
    quick: Callable[..., Any], given: Callable[..., Path], model: str
) -> None:
    rows = visits(260)
    data = given(train=rows[:200], validation=rows[200:220], test=rows[220:])
    config = quick(
        task=TASK, model=model, data=data, method="full", lr=1e-2, max_steps=40, eval_every=20,
        batch_size=32, task_arg={"first": 3},
    )  # fmt: skip
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "ndcg_at_10"
    assert metrics["gain_over"]["base"]["low"] > 0
    assert evaluate(config.out, None, "test")["value"] == metrics["test"]
    (told,) = predict(config.out, str(line(data.parent / "new.jsonl", ["item4", "item7"])))
    assert told["recommended"][0] == "item10"
    assert len(told["recommended"]) == len(told["probabilities"]) == 3
    (alone,) = predict(config.out, str(line(data.parent / "one.jsonl", ["item4"])))
    assert alone["recommended"][0] == "item7"


def line(path: Path, items: list[str]) -> Path:
    path.write_text(json.dumps({"items": items}) + "\n", "utf8")
    return path


def test_the_command_line(given: Callable[..., Path], model: str, tmp_path: Path) -> None:
    rows = visits(60)
    data = given(train=rows[:40], validation=rows[40:50], test=rows[50:])
    command = (
        *(sys.executable, "-m", "trimtab", "tune", "--task", TASK, "--data", str(data)),
        *("--model", model, "--out", str(tmp_path / "run"), "--max-steps", "2"),
        *("--task-arg", "repeats=false", "--dtype", "float32", "--attention", "eager", "--json"),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metric"] == "ndcg_at_10"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"items": ["item1", "item77"]}, "the item 'item77' is none of the 30 that .* knows"),
        ({"items": ["item1", "item2"], "next": "lamp"}, "the item 'lamp' is none of the 30"),
        ({"items": ["item1"]}, "one item alone has none that comes after it"),
        ({"items": []}, "empty items"),
    ],
)
def test_visits_that_are_none(
    quick: Callable[..., Any],
    given: Callable[..., Path],
    model: str,
    row: dict[str, Any],
    message: str,
) -> None:
    data = given(train=[*visits(3), row])
    with pytest.raises(InputError, match=rf"train\.jsonl, line 4: {message}"):
        read_data(quick(task=TASK, model=model, data=data))


def test_what_is_no_catalogue(quick: Callable[..., Any], tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop")
    (folder / "items.json").write_text(json.dumps([*ITEMS, "more"]))
    with pytest.raises(InputError, match=r"items\.json has 31 items, .* and the model 30 ids"):
        lookup(TASK).processor(str(folder))
    (folder / "items.json").unlink()
    with pytest.raises(InputError, match=r"has no items\.json beside its weights"):
        lookup(TASK).processor(str(folder))
    for option in ({"first": 0}, {"repeats": "no"}):
        with pytest.raises(InputError, match="recommendation: "):
            lookup(TASK, option)
