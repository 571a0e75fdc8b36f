"""Tables: what the transformer is given, a label that is looked for, cells that it cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.tabular_classification import SIZES, reader, transfers, written
from places import shared
from sklearn.metrics import average_precision_score

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import decision, lookup, tabular
from trimtab.tune.run import tune
from trimtab.tune.session import read_data, read_stream

TASK = "tabular-classification"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader(tmp_path_factory.mktemp("reader"))


def test_what_the_transformer_is_given(model: Path) -> None:
    """Numbers in deviations from their mean, categories by their place."""
    columns = tabular.opened(str(model))[1]
    (μ, σ), (_, hours) = columns.numbers["amount"], columns.numbers["hour"]
    assert columns.categories["shop"] == ["books", "food", "tickets"]
    given = {"amount": str(μ + 2 * σ), "hour": columns.numbers["hour"][0] - hours, "shop": "food"}
    example = columns.example(*columns.cells(given))
    assert example["x_cont"] == pytest.approx([2.0, -1.0])
    assert example["x_cat"] == [1]
    amounts = [row["amount"] for row in transfers(200, seed=1)]
    assert (μ, σ) == pytest.approx((np.mean(amounts), np.std(amounts)))


def test_a_column_that_never_changes_stays_finite() -> None:
    columns = tabular.Columns.of([{"x": 3.0}, {"x": 3.0}], [])
    assert columns.example(*columns.cells({"x": 3}))["x_cont"] == [0.0]
    batch = columns.collate([{"x_cont": [0.0], "x_cat": []}])
    assert batch["x_cat"] is None
    assert tabular.network(columns, 2, SIZES)(**batch).shape == (1, 2)


def test_a_head_of_the_same_labels_is_kept(model: Path) -> None:
    own, fresh = tabular.load(str(model), ["fraud", "sound"], dropout=False)
    assert fresh == []
    other, fresh = tabular.load(str(model), ["a", "b", "c"], dropout=False)
    assert fresh == [f"{tabular.HEAD}.weight", f"{tabular.HEAD}.bias"]
    assert torch.equal(other.cls_embedding.weight, own.cls_embedding.weight)


def test_how_sure_one_label_is() -> None:
    z = np.log(np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]]))
    found = decision.sure(z, ["a", "b", "c"], "b")
    assert found == pytest.approx([np.log(0.3 / 0.7), np.log(0.1 / 0.9)])


def test_fraud_is_found(quick: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    data = written(transfers(400), tmp_path / "transfers.csv")
    options = {"positive": "fraud", "weights": "balanced"}
    config = quick(
        task=TASK, model=model, data=data, task_arg=options, method="full", lr=5e-3, max_steps=60,
        eval_every=20, batch_size=64, attention="auto",
    )  # fmt: skip
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "average_precision"
    assert metrics["test"]["value"] > metrics["baselines"]["base"]["value"]
    assert not any("uneven" in note for note in metrics["notes"])
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]
    assert set(again["metrics"]) == {"roc_auc"}
    told = predict(config.out, str(data))
    assert set(told[0]) == {"row", "label", "probability", "positive"}
    right = [row["label"] == "fraud" for row in transfers(400)]
    score = average_precision_score(right, [row["positive"] for row in told])
    assert score > np.mean(right) + 0.2


def test_a_table_is_streamed(quick: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    """Its cells are read by the model's columns, as those of a table in memory."""
    rows, folder = transfers(300), tmp_path / "parted"
    folder.mkdir()
    for split, part in (("train", rows[:200]), ("validation", rows[200:250]), ("test", rows[250:])):
        written(part, folder / f"{split}.csv")
    short = {"max_steps": 4, "eval_every": 4, "attention": "auto"}
    config = quick(task=TASK, model=model, data=folder, stream=True, **short)
    splits, pieces = read_stream(config)
    assert [len(part) for part in pieces()] == [200]
    whole = read_data(config.model_copy(update={"stream": False}))
    assert list(splits.train["numbers"]) == list(whole.train["numbers"])
    assert tune(config, quiet=True)["test"]["n"] == 50


def test_labels_are_told_apart(quick: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": row["shop"]} for row in transfers(200)]
    data = written(rows, tmp_path / "shops.csv")
    config = quick(task=TASK, model=model, data=data, max_steps=20, lr=1e-2, attention="auto")
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "accuracy"
    assert metrics["test"]["value"] > 0.9


def test_texts_with_one_label_that_is_looked_for(quick: Callable[..., Any], tmp_path: Path) -> None:
    """Records of adult as texts."""
    lines = shared("data", "adult", "adult.data").read_text("utf8").splitlines()
    cells = [line.split(", ") for line in lines[1:121]]
    rows = [{"text": f"{c[3]}, {c[5]}, {c[6]}", "label": c[-1]} for c in cells]
    data = written(rows, tmp_path / "adult.csv")
    options = {"positive": ">50K", "weights": "balanced"}
    config = quick(model="minilm", data=data, task_arg=options, max_steps=2, eval_every=2)
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "average_precision"
    assert 0 < metrics["baselines"]["head"]["value"] <= 1
    assert {"label", "probability", "positive"} < set(predict(config.out, str(data))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amount": "many"}, "the amount is 'many', not a finite number"),
        ({"amount": "inf"}, "the amount is 'inf', not a finite number"),
        ({"hour": ""}, "missing hour"),
        ({"shop": "foods"}, "the shop is 'foods', which the model does not know; .*food"),
        ({"label": ""}, "empty label"),
    ],
)
def test_cells_that_are_none(
    quick: Callable[..., Any], model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = transfers(40)
    rows[2] = {**rows[2], **change}
    data = written(rows, tmp_path / "transfers.csv")
    with pytest.raises(InputError, match=rf"transfers\.csv, line 4: {message}"):
        read_data(quick(task=TASK, model=model, data=data))
    kept = read_data(quick(task=TASK, model=model, data=data, skip_bad_rows=True))
    assert sum(map(len, (kept.train, kept.validation, kept.test))) == 39


def test_what_is_no_table(quick: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    rows = [{k: x for k, x in row.items() if k != "hour"} for row in transfers(40)]
    data = written(rows, tmp_path / "short.csv")
    with pytest.raises(InputError, match=r"short\.csv has no column 'hour'"):
        read_data(quick(task=TASK, model=model, data=data))
    with pytest.raises(InputError, match="no row of train has this label"):
        lookup(TASK, {"positive": "theft"}).labels({"label": ["a", "b"]})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weights are even or balanced"):
        lookup(TASK, {"weights": "uneven"})
    with pytest.raises(InputError, match="positive belongs to kind=one"):
        lookup("text-classification", {"positive": "a", "kind": "number"})
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="is no transformer of tables"):
        read_data(quick(task=TASK, model=tmp_path / "bert", data=data))
