"""What a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from trimtab.core.errors import InputError
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Finished = tuple[Path, dict[str, Any]]

NAMED = {"schema", "task", "metric", "test", "validation", "baselines", "trainable", "total"}
NAMED |= {"adapter_bytes", "train_seconds", "wall_seconds", "tokens_per_second", "method", "seed"}
NAMED |= {"peak_memory_bytes", "versions", "hardware", "base_fingerprint"}


def test_the_folder_holds_what_is_promised_and_nothing_else(finished: Finished) -> None:
    folder, _ = finished
    names = {"config.yaml", "adapter", "checkpoints", "metrics.json", "log.jsonl", "report.html"}
    names |= {"answers.json", "head.safetensors"}  # of each test row, and the head trained alone
    assert {path.name for path in folder.iterdir()} == names
    adapter = {path.name for path in (folder / "adapter").iterdir()}
    assert adapter == {"adapter.json", "adapter.safetensors"}


def test_metrics_are_complete_and_are_what_was_returned(finished: Finished) -> None:
    folder, returned = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(returned))
    assert set(metrics) >= NAMED
    assert (metrics["method"], metrics["seed"], metrics["schema"]) == ("lora", 0, 1)
    assert (metrics["task"], metrics["metric"]) == ("text-classification", "accuracy")
    assert set(metrics["baselines"]) == {"base", "head"}
    assert 0 < metrics["trainable"] < metrics["total"] / 50
    for name in ("train_seconds", "wall_seconds", "tokens_per_second", "peak_memory_bytes"):
        assert metrics[name] > 0
    assert metrics["train_seconds"] <= metrics["wall_seconds"]
    on_disk = sum(path.stat().st_size for path in (folder / "adapter").iterdir())
    assert metrics["adapter_bytes"] == on_disk


def test_intervals_hold_their_values(finished: Finished) -> None:
    _, metrics = finished
    measured = [metrics["test"], metrics["validation"], *metrics["baselines"].values()]
    for interval in measured:
        assert set(interval) == {"value", "low", "high", "n"}
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        assert interval["n"] == 10
    assert metrics["test"]["value"] >= metrics["baselines"]["base"]["value"]


def test_the_resolved_configuration_is_saved(finished: Finished) -> None:
    folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config) == set(Config.model_fields)
    assert config["labels"] == ["home", "money"]
    assert config["train"] == ["classifier"]
    assert (config["lr"], config["base_dropout"]) == (1e-3, False)


def test_the_log_has_every_step_once_and_ends_with_an_evaluation(finished: Finished) -> None:
    folder, metrics = finished
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [4, 8]
    best = max(line["eval_accuracy"] for line in lines if "eval_accuracy" in line)
    assert metrics["validation"]["value"] == best


def test_the_report_is_whole_and_opens_offline(finished: Finished) -> None:
    report = (finished[0] / "report.html").read_text()
    assert report.rstrip().endswith("</html>")
    assert "minilm" in report
    assert 'src="http' not in report


def test_a_run_s_configuration_makes_the_run_again(finished: Finished, tmp_path: Path) -> None:
    folder, metrics = finished
    fields = yaml.safe_load((folder / "config.yaml").read_text())
    again = tune(Config(**{**fields, "out": str(tmp_path / "again")}), quiet=True)
    assert same_adapter(folder, tmp_path / "again")
    assert again["test"] == metrics["test"]
    assert again["base_fingerprint"] == metrics["base_fingerprint"]


def same_adapter(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "adapter" / "adapter.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_another_seed_makes_another_adapter(
    finished: Finished, settings: Callable[..., Config], tmp_path: Path
) -> None:
    tune(settings(tmp_path / "other", seed=1, max_steps=2), quiet=True)
    assert not same_adapter(finished[0], tmp_path / "other")


def test_a_folder_with_a_run_is_not_written_over(
    finished: Finished, settings: Callable[..., Config]
) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=r"holds a run already.*--resume.*--out"):
        tune(settings(folder), quiet=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_wrong_input_leaves_no_folder(settings: Callable[..., Config], tmp_path: Path) -> None:
    for change in ({"target": "q_prj"}, {"max_length": 9999}, {"label_column": "lable"}):
        with pytest.raises(InputError):
            tune(settings(tmp_path / "run", **change), quiet=True)
        assert not (tmp_path / "run").exists()


def test_the_head_is_not_trained_alone_where_that_is_not_wanted(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    metrics = tune(settings(tmp_path / "run", max_steps=1, head_only=False), quiet=True)
    assert metrics["baselines"]["head"] is None
    assert metrics["probe_seconds"] == 0
    assert metrics["baselines"]["base"]["n"] == metrics["test"]["n"]
    assert any("--no-head-only" in note for note in metrics["notes"])
