"""A finished run evaluated again: the figures of its report come out, the base's too."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.evaluate.run import evaluate
from trimtab.tune import hardware, positions
from trimtab.tune.config import Config, parse
from trimtab.tune.folder import Run
from trimtab.tune.phases import QUIET
from trimtab.tune.run import _ready, tune
from trimtab.tune.session import open_session


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fastest: str) -> Config:
    """A run in bf16 on texts of many lengths, on a machine where this attention is the fastest."""
    monkeypatch.setattr(hardware, "choose_attention", lambda model, names, step: (fastest, {}))
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for n in range(90):
            rows.writerow([f"number {n} " + "of a long story " * (n % 9), ("a", "b", "c")[n % 3]])
    fields = {"model": "minilm", "data": str(path), "out": str(tmp_path / "run"), "max_steps": 1}
    return parse({**fields, "dtype": "bfloat16", "target": "query", "batch_size": 8}, "a test")


@pytest.mark.parametrize("fastest", ["sdpa", "eager"])
def test_the_base_is_the_same_bit_for_bit(config: Config, fastest: str) -> None:
    """As `tune` has it, and as it is opened again with what the run has pinned."""
    work, _ = _ready(Run(Path(config.out)), config, QUIET)
    assert work.session.config.attention == fastest
    again = open_session(work.session.config, work.session.labels)
    if config.first_position:
        positions.narrow(again.model)
    for split in ("validation", "test"):
        assert np.array_equal(again.outputs(work.encoded[split]), work.outputs["base"][split])


@pytest.mark.parametrize("fastest", ["sdpa", "eager", "blockwise"])
def test_a_run_that_goes_on_finds_the_same_first_rows(config: Config, fastest: str) -> None:
    """With its choices pinned; the base's, the head's, and where the new head begins."""
    once, _ = _ready(Run(Path(config.out)), config, QUIET)
    pinned = once.session.config.model_copy(deep=True)
    assert pinned.attention == fastest
    again, _ = _ready(Run(Path(config.out)), pinned, QUIET)
    for row in ("base", "head"):
        for split in ("validation", "test"):
            assert np.array_equal(again.outputs[row][split], once.outputs[row][split])
    assert once.probed is not None
    assert again.probed is not None
    begun = once.probed.state_dict()
    for name, tensor in again.probed.state_dict().items():
        assert torch.equal(tensor, begun[name])


@pytest.mark.parametrize("fastest", ["eager"])
def test_eval_gives_the_figures_of_the_report(config: Config, fastest: str) -> None:
    metrics = tune(config, quiet=True)
    found = evaluate(config.out, None, "test")
    want: dict[str, Any] = {"value": metrics["test"], "base": metrics["baselines"]["base"]}
    want["gain_over_base"] = metrics["gain_over"]["base"]
    assert {key: found[key] for key in want} == want
