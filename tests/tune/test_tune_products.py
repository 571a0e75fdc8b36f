"""Whether a run multiplies in eight bits: measured, written down, asked for, refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from trimtab.core.errors import InputError
from trimtab.evaluate.run import evaluate
from trimtab.kernels import coded
from trimtab.kernels.coded import Int8Linear
from trimtab.tune.config import Config
from trimtab.tune.folder import Run
from trimtab.tune.run import tune

Settings = Callable[..., Config]
here = pytest.mark.skipif(not coded.here(), reason="no compiled kernels, or no AVX-512 VNNI")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every product in eight bits."""
    seen: list[object] = []
    apply = Int8Linear.apply

    def followed(*args: Any) -> Any:
        seen.append(args)
        return apply(*args)

    monkeypatch.setattr(Int8Linear, "apply", followed)
    return seen


@here
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_asked_for_is_done(
    settings: Settings, tmp_path: Path, dtype: str, used: list[object]
) -> None:
    """In training; what is evaluated is the exact base, as a new process finds it."""
    run = tmp_path / "run"
    metrics = tune(settings(run, products="int8", dtype=dtype), quiet=True)
    assert used
    assert Run(run).config().products == "int8"
    trained, found = len(used), evaluate(str(run), None, "test")
    assert len(used) == trained
    assert found["value"] == metrics["test"]


def test_exact_is_exact(settings: Settings, tmp_path: Path, used: list[object]) -> None:
    tune(settings(tmp_path / "run", products="exact"), quiet=True)
    assert not used


@here
def test_what_measurement_chose_is_written_down(settings: Settings, tmp_path: Path) -> None:
    tune(settings(tmp_path / "run", products="auto"), quiet=True)
    config = Run(tmp_path / "run").config()
    assert config.products in ("int8", "exact")
    assert set(config.measured["products_ms"]) == {"int8", "exact"}
    assert 0.9 < config.measured["int8_agreement"] <= 1


@pytest.mark.parametrize("method", ["full", "head"])
def test_who_trains_through_no_frozen_maps_has_none(
    settings: Settings, tmp_path: Path, method: str
) -> None:
    with pytest.raises(InputError, match="no frozen maps"):
        tune(settings(tmp_path / "run", products="int8", method=method, target=None), quiet=True)
    assert not (tmp_path / "run").exists()


def test_where_the_kernels_are_not_it_says_so(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded, "here", lambda: False)
    with pytest.raises(InputError, match="compiled kernels"):
        tune(settings(tmp_path / "run", products="int8"), quiet=True)
    tune(settings(tmp_path / "other"), quiet=True)
    assert Run(tmp_path / "other").config().products == "exact"


@here
def test_a_resumed_run_goes_on_as_it_was(settings: Settings, tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint in the middle: the same batch balances the codes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tune(settings(whole, products="int8", replicas=1), quiet=True)
    shutil.copytree(whole, cut)
    (cut / "metrics.json").unlink()
    shutil.rmtree(cut / "adapter")
    for later in (cut / "checkpoints").glob("checkpoint-*"):
        if int(later.name.rpartition("-")[2]) > 4:
            shutil.rmtree(later)
    tune(settings(cut, products="int8", replicas=1), resume=True, quiet=True)
    one, other = (load_file(run / "adapter" / "adapter.safetensors") for run in (whole, cut))
    assert [name for name in one if not one[name].equal(other[name])] == []
