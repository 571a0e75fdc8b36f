"""How training ends: by patience with the best adapter, or in divergence with the last good one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trimtab.core.errors import TrimtabError
from trimtab.tune import trainer
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]


def evaluations(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line["eval_accuracy"] for line in lines if "eval_accuracy" in line}


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "adapter.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_patience_ends_the_run_with_its_best_adapter(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"eval_every": 1, "save_every": 1, "patience": 2, "probe_first": False}
    metrics = tune(settings(out, max_steps=40, **changes), quiet=True)
    seen = evaluations(out)
    best = max(seen.values())
    assert metrics["best_step"] == min(step for step, value in seen.items() if value == best)
    assert max(seen) == metrics["best_step"] + 2 < 40
    assert metrics["validation"]["value"] == best
    assert same(out / "adapter", out / "checkpoints" / "best")
    last = out / "checkpoints" / f"checkpoint-{max(seen)}"
    assert not same(out / "adapter", last)


def test_without_patience_a_run_goes_on(settings: Settings, tmp_path: Path) -> None:
    changes = {"eval_every": 1, "save_every": 8, "patience": None}
    tune(settings(tmp_path / "run", **changes), quiet=True)
    assert sorted(evaluations(tmp_path / "run")) == list(range(1, 9))


def test_the_last_step_is_evaluated_whatever_eval_every(settings: Settings, tmp_path: Path) -> None:
    metrics = tune(settings(tmp_path / "run", max_steps=3, eval_every=100), quiet=True)
    assert list(evaluations(tmp_path / "run")) == [3]
    assert metrics["best_step"] == 3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_divergence(method: str, settings: Settings, tmp_path: Path) -> None:
    """The learning rate explodes after two good steps, of which a checkpoint remains."""
    out = tmp_path / "run"
    target = ["query", "value"] if method == "lora" else None
    config = settings(out, lr=1e30, method=method, target=target, save_every=1, warmup=0.2)
    with pytest.raises(TrimtabError, match=r"loss is \S+ at step \d+ .*1e\+30.*--lr") as raised:
        tune(config, quiet=True)
    assert raised.value.exit_code == 1
    assert not (out / "metrics.json").exists()
    assert not (out / "adapter").exists()
    checkpoint = trainer.last_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint / trainer.COMPLETE).exists()
    tensors = load_file(checkpoint / trainer.TENSORS)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_log_of_a_diverged_run_is_finite(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match="diverged"):
        tune(settings(tmp_path / "run", lr=1e30), quiet=True)
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert all(math.isfinite(line.get("loss", 0.0)) for line in lines)


def test_accumulated_batches_are_one_large_batch(settings: Settings, tmp_path: Path) -> None:
    def trained(out: str, **changes: Any) -> dict[str, torch.Tensor]:
        tune(settings(tmp_path / out, max_steps=4, probe_first=False, **changes), quiet=True)
        return load_file(tmp_path / out / "checkpoints" / "checkpoint-4" / trainer.TENSORS)

    large = trained("large", batch_size=16)
    small = trained("small", batch_size=8, gradient_accumulation=2)
    other = trained("other", batch_size=8)
    moved = [name for name in large if name.endswith(".B") or "classifier" in name]
    assert len(moved) == 2 * 6 + 2
    for name in moved:
        apart, elsewhere = (large[name] - small[name]).norm(), (large[name] - other[name]).norm()
        assert apart < 0.05 * elsewhere
