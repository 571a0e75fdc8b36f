"""Forecasts: windows without leakage, the loss in units of the window, errors by file and row."""

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
from examples.time_series_forecasting import (
    CONTEXT,
    HORIZON,
    STEPS,
    patchtsmixer,
    patchtst,
    table,
    waves,
    written,
)
from places import shared

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.run import evaluate, predict
from trimtab.tasks import lookup
from trimtab.tune.run import tune
from trimtab.tune.session import read_data

TASK = "time-series-forecasting"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    written(patchtst, folder / "patchtst")
    written(patchtsmixer, folder / "patchtsmixer")
    written(patchtsmixer, folder / "likely", loss="nll", distribution_output="normal")
    written(patchtst, folder / "three", num_input_channels=3, channel_attention=True)
    return folder


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.csv"
    path.write_text(table(waves()), "utf8")
    return path


def changed(path: Path, line: int, column: int, value: str) -> Path:
    """The table with another cell; lines count from 1, the header's."""
    lines = path.read_text("utf8").splitlines()
    cells = lines[line - 1].split(",")
    cells[column] = value
    lines[line - 1] = ",".join(cells)
    path.write_text("\n".join(lines), "utf8")
    return path


def test_no_step_that_is_held_out_is_trained_on(
    quick: Callable[..., Any], models: Path, loads: Path
) -> None:
    counted = {name: np.arange(STEPS) for name in waves()}
    loads.write_text(table(counted), "utf8")
    splits = read_data(
        quick(task=TASK, model=models / "patchtst", data=loads, task_arg={"target": "oil"})
    )
    train, validation, test = (
        [row["future"] for row in split] for split in (splits.train, splits.validation, splits.test)
    )
    assert max(map(max, train)) == 0.7 * STEPS - 1
    assert (min(map(min, validation)), max(map(max, validation))) == (0.7 * STEPS, 0.8 * STEPS - 1)
    assert (min(map(min, test)), max(map(max, test))) == (0.8 * STEPS, STEPS - 1)
    assert max(map(max, splits.train["past"])) < 0.7 * STEPS
    assert set(splits.train["series"]) == {"oil"}
    row = splits.test[0]
    assert row["past"] + row["future"] == list(range(STEPS))[320 - CONTEXT : 320 + HORIZON]


def test_a_split_that_is_missing_is_the_end_of_train(
    quick: Callable[..., Any], models: Path, tmp_path: Path
) -> None:
    """Windows drawn from among those of train would share nearly all their steps with them."""
    lines = table({"load": np.arange(800)}).splitlines()
    folder = tmp_path / "loads"
    folder.mkdir()
    for split, part in (("train", lines[1:601]), ("test", lines[601:])):
        (folder / f"{split}.csv").write_text("\n".join([lines[0], *part]), "utf8")
    splits = read_data(quick(task=TASK, model=models / "patchtst", data=folder))
    train, validation, test = (
        [row["future"] for row in split] for split in (splits.train, splits.validation, splits.test)
    )
    assert max(map(max, train)) == 524  # 7 / 8 of train
    assert (min(map(min, validation)), max(map(max, validation))) == (525, 599)
    assert min(map(min, splits.test["past"])) == 600
    assert len(test) == 200 - CONTEXT - HORIZON + 1


def test_a_table_of_series_is_no_stream(
    quick: Callable[..., Any], models: Path, loads: Path
) -> None:
    folder = loads.parent / "parted"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_text(loads.read_text("utf8"), "utf8")
    config = quick(task=TASK, model=models / "patchtst", data=folder, stream=True)
    with pytest.raises(InputError, match="is cut into rows as a whole, and a stream has pieces"):
        read_data(config)


@pytest.mark.parametrize("name", ["patchtst", "patchtsmixer"])
def test_the_loss_is_in_units_of_the_window(models: Path, name: str) -> None:
    """A series in other units is as hard as before, and its forecast is in them."""
    task, path = lookup(TASK), str(models / name)
    model, fresh = task.model(path, [], CONTEXT, torch.float32, dropout=False)
    assert fresh == []
    oil = waves()["oil"]
    example = {"past": oil[:CONTEXT], "labels": oil[CONTEXT:][:HORIZON]}
    larger = {key: 1000 * x + 7000 for key, x in example.items()}
    model.eval()
    (loss, one), (other, two) = (
        task.loss(model, task.collate([made], CONTEXT)) for made in (example, larger)
    )
    torch.testing.assert_close(loss, other, rtol=1e-2, atol=0)
    torch.testing.assert_close(1000 * one + 7000, two, rtol=1e-3, atol=0)
    deviation = float(np.std(oil[:CONTEXT]))
    given = torch.tensor(example["labels"], dtype=torch.float32)[None, :, None]
    torch.testing.assert_close(loss, ((one - given) / deviation).square().mean(), rtol=1e-3, atol=0)


def test_a_distribution_is_trained_by_its_likelihood(models: Path) -> None:
    task = lookup(TASK)
    model, _ = task.model(str(models / "likely"), [], CONTEXT, torch.float32, dropout=False)
    load = waves()["load"]
    batch = task.collate([{"past": load[:CONTEXT], "labels": load[CONTEXT:][:HORIZON]}], CONTEXT)
    with torch.no_grad():
        loss, mean = task.loss(model.eval(), batch)
        found = task.ask(model, batch, CONTEXT)
    own = model(past_values=batch["past_values"], future_values=batch["labels"])
    torch.testing.assert_close(loss, own.loss)
    np.testing.assert_allclose(found, mean.squeeze(-1).numpy(), rtol=1e-6)


def test_the_naive_forecast_is_the_unit(models: Path) -> None:
    """Of waves that repeat themselves but for noise, repeating the last season has a MASE of 1."""
    task, load = lookup(TASK, {"season": 24}), waves(4000)["load"]
    starts = range(0, 3000, 60)
    rows = {"past": [load[a : a + 240] for a in starts], "future": []}
    rows["future"] = [load[a + 240 : a + 264] for a in starts]
    references = task.references(rows, [])  # type: ignore[arg-type]
    naive = [past[-24:] for past in rows["past"]]
    assert METRICS["mase"].value(naive, references) == pytest.approx(1, abs=0.1)
    errors = np.abs(np.array(naive) - np.array(rows["future"]))
    assert METRICS["forecast_mae"].value(naive, references) == pytest.approx(errors.mean())


def test_a_forecaster_learns(quick: Callable[..., Any], models: Path, loads: Path) -> None:
    """Waves that a random network knows nothing of; new data are a table, or windows."""
    config = quick(
        task=TASK, model=models / "patchtst", data=loads, task_arg={"season": 24, "stride": 4},
        method="full", max_steps=150, eval_every=50, lr=3e-3, batch_size=16,
    )  # fmt: skip
    metrics = tune(config, quiet=True)
    assert metrics["metric"] == "mase"
    assert not metrics["higher_is_better"]
    assert metrics["test"]["value"] < 0.8 * metrics["baselines"]["base"]["value"]
    again = evaluate(config.out, None, "test")
    assert again["value"] == metrics["test"]
    assert set(again["metrics"]) == {"forecast_mae"}
    told = predict(config.out, str(loads))
    assert [one["series"] for one in told] == ["load", "oil"]
    assert all(len(one["forecast"]) == HORIZON for one in told)
    assert np.mean(told[0]["forecast"]) == pytest.approx(100, abs=40)
    new = loads.with_name("new.csv")
    new.write_text(loads.read_text("utf8"), "utf8")
    every = 2 * ((STEPS - CONTEXT - HORIZON) // 4 + 1)
    assert evaluate(config.out, str(new), "test")["value"]["n"] == every
    windows = loads.with_name("new.jsonl")
    past = {name: list(found[-CONTEXT - 5 :]) for name, found in waves().items()}
    windows.write_text("".join(json.dumps({"past": row}) + "\n" for row in past.values()))
    assert [one["forecast"] for one in predict(config.out, str(windows))] == [
        one["forecast"] for one in told
    ]
    windows.write_text(json.dumps({"past": [1.0, 2.0]}))
    with pytest.raises(InputError, match=r"new\.jsonl, line 1: the past has 2 values, .* needs 48"):
        predict(config.out, str(windows))


def test_windows_of_real_data(quick: Callable[..., Any], models: Path, tmp_path: Path) -> None:
    """The command line, on the hours of a transformer's oil."""
    source = shared("data", "ett", "ETTh1.csv")
    few = tmp_path / "oil.csv"
    few.write_text("\n".join(source.read_text("utf8").splitlines()[:1501]), "utf8")
    options = ("--task-arg", "target=OT", "--task-arg", "season=24", "--task-arg", "stride=12")
    command = (
        *(sys.executable, "-m", "trimtab", "tune", "--task", TASK, "--data", str(few)),
        *("--model", str(models / "patchtsmixer"), "--out", str(tmp_path / "oil"), *options),
        *("--max-steps", "4", "--eval-every", "2", "--json", "--attention", "eager"),
        *("--products", "exact", "--replicas", "1"),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["metric"] == "mase"
    assert found["test"]["n"] == (300 - HORIZON) // 12 + 1


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (30, 2, "", r"loads\.csv, line 30: the value of oil is missing"),
        (31, 1, "n/a", r"loads\.csv, line 31: the value of load is 'n/a', not a finite number"),
        (40, 0, "2024-01-01T00", r"loads\.csv, line 40: .* does not come after"),
    ],
)
def test_a_table_that_is_broken(
    quick: Callable[..., Any],
    models: Path,
    loads: Path,
    line: int,
    column: int,
    value: str,
    message: str,
) -> None:
    data = changed(loads, line, column, value)
    with pytest.raises(InputError, match=message):
        read_data(quick(task=TASK, model=models / "patchtst", data=data))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"past": [1, 2], "future": [1] * 12}, r"line 3: the past has 2 values, .* needs 48"),
        ({"past": [*range(48)], "future": [1]}, r"line 3: the future has 1 values, .* gives 12"),
        ({"past": [1] * 48, "future": [1] * 12}, "line 3: the past never changes"),
        ({"past": [0] + [1] * 48, "future": [1] * 12}, "line 3: the last 48 values"),
        ({"past": [0, None] * 24, "future": [1] * 12}, "line 3: the past, number 2,"),
        ({"future": [1] * 12}, "line 3: missing past"),
    ],
)
def test_windows_that_are_broken(
    quick: Callable[..., Any],
    given: Callable[..., Path],
    models: Path,
    row: dict[str, Any],
    message: str,
) -> None:
    good = {"past": [float(i) for i in range(48)], "future": [1.0] * 12}
    data = given(train=[good, good, row])
    with pytest.raises(InputError, match=f"train.jsonl, {message}"):
        read_data(quick(task=TASK, model=models / "patchtst", data=data))


def test_what_is_no_forecaster(
    quick: Callable[..., Any], models: Path, loads: Path, tmp_path: Path
) -> None:
    fields = {"task": TASK, "model": models / "patchtst", "data": loads}
    with pytest.raises(InputError, match=r"no column 'oul' to forecast .*oil"):
        read_data(quick(**fields, task_arg={"target": "oul"}))
    short = tmp_path / "short.csv"
    short.write_text("\n".join(loads.read_text("utf8").splitlines()[:60]))
    with pytest.raises(
        InputError, match=r"of its 59 steps are a split, and a window has 48 and 12"
    ):
        read_data(quick(**{**fields, "data": short}))
    with pytest.raises(InputError, match="looks at 3 series at once"):
        lookup(TASK).model(str(models / "three"), [], CONTEXT, torch.float32, dropout=False)
    for option in ({"season": 0}, {"stride": 1.5}):
        with pytest.raises(InputError, match="is a whole number from 1 on"):
            lookup(TASK, option)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="does not forecast a series"):
        read_data(quick(**{**fields, "model": tmp_path / "bert"}))
