"""What training is told of the held-out data is true of the weights that it has by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab.tune import training
from trimtab.tune.config import Config
from trimtab.tune.run import tune

Settings = Callable[..., Config]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("products", ["exact", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_each_evaluation_is_of_the_weights_of_its_step(
    method: str,
    products: str,
    replicas: int,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In half precision, where compiled kernels stand in for the laws; the laws themselves, which
    keep nothing from call to call, say the same of every step."""
    found: list[float] = []
    judge = training.judge

    def judged(*arguments: Any) -> dict[str, float]:
        values = judge(*arguments)
        with trimtab.kernels.disabled():
            assert judge(*arguments)["eval_loss"] == pytest.approx(values["eval_loss"], rel=0.01)
        found.append(values["eval_loss"])
        return values

    monkeypatch.setattr(training, "judge", judged)
    changes: dict[str, Any] = {"method": method, "products": products, "replicas": replicas}
    changes |= {"dtype": "bfloat16", "target": "all-linear", "lr": 1e-2, "eval_every": 1}
    changes |= {"max_steps": 4, "save_every": 4, "probe_first": False}
    tune(settings(tmp_path / "run", **changes), quiet=True)
    assert len(found) == 4
    assert max(found) > 1.02 * min(found), "nothing changed"
