"""The Trainer of `tune` gives each parameter the learning rate that its method asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
from transformers import TrainingArguments

import trimtab
from trimtab.tune.trainer import AdapterTrainer, Memory


@pytest.mark.parametrize("method", [trimtab.LoRA, trimtab.DoRA])
@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_every_parameter_has_its_rate(method: Any, ratio: float, tmp_path: Path) -> None:
    model = cases.by_name("bert").model()
    adapter = trimtab.attach(model, method(lr_ratio=ratio))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=0.5, weight_decay=0.1, use_cpu=True, report_to=[]
    )
    loop = AdapterTrainer(model, arguments, adapter=adapter, task=None, memory=Memory())
    loop.create_optimizer_and_scheduler(10)
    assert loop.create_optimizer() is loop.optimizer  # which multiplies no rate again
    rates = {p: g["initial_lr"] for g in loop.optimizer.param_groups for p in g["params"]}
    given = [id(p) for group in loop.optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in adapter.parameters())
    for _, delta in adapter.deltas():
        for name, parameter in delta.named_parameters():
            assert rates[parameter] == 0.5 * (ratio if name == "B" else 1)
