"""Every method tunes, and its saved adapter evaluates to the very numbers that were reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trimtab
from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate, predict
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]
REFUSED = {
    "conditional": "task_ids",
    "fusion": "other adapters",
    "multitask-prompt": "task_ids",
    "whole": "--train",
}
SAVEABLE = sorted(set(trimtab.methods()) - {"lora", "full", *REFUSED})
STATEFUL = {"adalora", "delora", "factor", "fish", "fourierft", "knowledge", "randlora"} | {
    *("shared", "shira", "vera"),
}
"""Of what they save, some is not trained."""


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*zip(SAVEABLE, cycle(("float32", "bfloat16"))), ("full", "float32"), ("full", "bfloat16")],
)
def test_a_method_tunes_and_evaluates_to_the_same(
    method: str, dtype: str, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = settings(out, method=method, target=None, dtype=dtype, max_steps=4, probe_first=False)
    metrics = tune(config, quiet=True)
    assert metrics["method"] == method
    if method in STATEFUL:
        assert 0 < metrics["trainable"] < trimtab_size(out)
    else:
        assert metrics["trainable"] == trimtab_size(out)
    for split in ("test", "validation"):
        again = evaluate(str(out), None, split)
        assert again["value"] == metrics[split]
    if method != "full":
        assert again["base"]["n"] == metrics["baselines"]["base"]["n"]


@pytest.mark.parametrize("method", REFUSED)
def test_what_a_file_of_texts_cannot_train_is_refused(
    method: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=REFUSED[method]):
        tune(settings(tmp_path / "run", method=method, target=None), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stop", [7, 8], ids=["amid the schedule", "after its end"])
def test_a_schedule_runs_to_its_end_also_when_resumed(
    stop: int, settings: Settings, tmp_path: Path
) -> None:
    """The saved adapter is the pruned one, and that of an interrupted run is the same."""
    arguments = {"rank": 4, "target": 1, "tinit": 1}
    config = settings(
        tmp_path / "run", method="adalora", target="query", method_arg=arguments, save_every=1
    )
    metrics = tune(config, quiet=True)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    masks = torch.stack([saved[name] for name in sorted(saved) if name.endswith(".mask")])
    assert masks.sum() == len(masks)
    assert any("last step" in note for note in metrics["notes"])

    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    shutil.rmtree(again / "adapter")
    (again / "metrics.json").unlink()
    for path in (again / "checkpoints").glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > stop:
            shutil.rmtree(path)
    tune(settings(again), resume=True, quiet=True)
    resumed = load_file(again / "adapter" / "adapter.safetensors")
    assert [name for name in saved if not torch.equal(saved[name], resumed[name])] == []


def test_prompts_and_prefixes_take_their_part_of_the_positions(
    settings: Settings, tmp_path: Path
) -> None:
    for method in ("prompt", "prefix"):
        config = settings(tmp_path / method, method=method, target=None, max_length=500)
        with pytest.raises(InputError, match=r"512 positions.*takes 20"):
            tune(config, quiet=True)


def trimtab_size(out: Path) -> int:
    from trimtab.store.describe import describe

    saved = describe(out)
    if saved.sites[0].name.startswith("("):
        tensors = (out / "adapter" / "adapter.safetensors").read_bytes()
        header = json.loads(tensors[8 : 8 + int.from_bytes(tensors[:8], "little")])
        ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
        return max(ends) // 4
    return saved.parameters


def test_lora_evaluates_to_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    result = evaluate(str(folder), None, "test")
    assert result["value"] == metrics["test"]
    assert result["base"] == metrics["baselines"]["base"]
    assert result["gain_over_base"] == metrics["gain_over"]["base"]


def test_new_data_and_predictions_agree(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = finished
    path = tmp_path / "new.csv"
    path.write_text("text,label\nMy cat slept on the sofa,home\nThe bank raised interest,money\n")
    result = evaluate(str(folder), str(path), "test")
    predicted = predict(str(folder), str(path))
    right = [row["label"] == label for row, label in zip(predicted, ("home", "money"), strict=True)]
    assert result["value"]["value"] == sum(right) / 2
    assert all(0.5 <= row["probability"] <= 1 for row in predicted)


def test_predictions_do_not_depend_on_their_neighbours(
    finished: tuple[Path, dict[str, Any]], sentences: Path, tmp_path: Path
) -> None:
    """Rows come back in their own order, however they were grouped by length."""
    folder, _ = finished
    lines = sentences.read_text().splitlines()
    path = tmp_path / "turned.csv"
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    forward, backward = predict(str(folder), str(sentences)), predict(str(folder), str(path))
    for one, other in zip(forward, reversed(backward), strict=True):
        assert (one["text"], one["label"]) == (other["text"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_ranks_by_target(settings: Settings, tmp_path: Path) -> None:
    config = settings(tmp_path / "run", ranks={"query": 2}, rank=4, target="value", max_steps=1)
    tune(config, quiet=True)
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    ranks = {
        (one["arguments"]["rank"], site.rpartition(".")[2])
        for one in saved["methods"]
        if one["method"] == "lora"
        for site in one["sites"]
    }
    assert ranks == {(2, "query"), (4, "value")}
