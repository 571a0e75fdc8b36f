"""Learning rates that a method asks for: LoRA+; and LoRA-FA, where A does not train."""

from __future__ import annotations

from typing import Any

import cases
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import trimtab


def by_rate(groups: list[dict[str, Any]]) -> dict[float, list[tuple[int, ...]]]:
    found: dict[float, list[tuple[int, ...]]] = {}
    for group in groups:
        if group["params"]:
            shapes = [tuple(parameter.shape) for parameter in group["params"]]
            found.setdefault(group["lr"], []).extend(shapes)
    return {rate: sorted(shapes) for rate, shapes in found.items()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_groups_are_hf_pefts(name: str) -> None:
    architecture = cases.by_name(name)
    model, base = architecture.model(), architecture.model()
    adapter = trimtab.attach(model, trimtab.LoRA(rank=3, lr_ratio=16.0))
    names = [site for site, _ in adapter.deltas()]
    config = peft.LoraConfig(r=3, target_modules=names, fan_in_fan_out=name == "gpt2")
    theirs = create_loraplus_optimizer(
        peft.get_peft_model(base, config), torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16.0
    )
    ours = torch.optim.AdamW(trimtab.parameters(model, lr=1e-4))
    assert by_rate(ours.param_groups) == by_rate(theirs.param_groups)


def linear(method: Any) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    (_, delta), *_ = trimtab.attach(model, method, "0").deltas()
    with torch.no_grad():
        delta.B.normal_()
    return model, delta


@pytest.mark.parametrize("method", [trimtab.LoRA, trimtab.DoRA])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 16.0])
def test_a_step_is_the_ratio_times_the_gradient(method: Any, ratio: float) -> None:
    model, delta = linear(method(rank=2, lr_ratio=ratio))
    before = {name: tensor.detach().clone() for name, tensor in delta.tensors().items()}
    optimizer = torch.optim.SGD(trimtab.parameters(model, lr=0.01))
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    for name, tensor in delta.tensors().items():
        rate = 0.01 * (ratio if name == "B" else 1)
        torch.testing.assert_close(tensor.detach(), before[name] - rate * tensor.grad)


def test_one_group_where_there_is_one_rate() -> None:
    model, _ = linear(trimtab.LoRA())
    (group,) = trimtab.parameters(model, lr=0.1)
    assert group["lr"] == 0.1
    assert [id(one) for one in group["params"]] == [id(one) for one in trimtab.parameters(model)]


def test_a_plain_list_says_what_it_leaves_out() -> None:
    model, _ = linear(trimtab.LoRA(lr_ratio=4.0))
    with pytest.warns(UserWarning, match="asks for several learning rates"):
        trimtab.parameters(model)


def test_a_ratio_must_be_above_zero() -> None:
    with pytest.raises(trimtab.InputError, match="lr_ratio must be above 0"):
        trimtab.LoRA(lr_ratio=0.0)


@pytest.mark.parametrize("method", [trimtab.LoRA, trimtab.DoRA])
def test_a_frozen_factor(method: Any, tmp_path: Any) -> None:
    """It acts, moves and is saved as if it trained; B's gradient is what it was."""
    model, delta = linear(method(rank=2, freeze_a=True))
    other, free = linear(method(rank=2))
    x = torch.randn(4, 6)
    for one in (model, other):
        one(x).square().sum().backward()
    torch.testing.assert_close(model(x), other(x))
    torch.testing.assert_close(delta.B.grad, free.B.grad)
    assert delta.A.grad is None
    assert free.A.grad is not None
    assert {id(p) for p in trimtab.parameters(model)} == {id(p) for p in delta.parameters()}
    trimtab.save(model, tmp_path / "adapter")
    again, _ = linear(method(rank=2))
    trimtab.detach(again)
    trimtab.load(again, tmp_path / "adapter")
    torch.testing.assert_close(again(x), model(x))
