"""Anchored factors: their law, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import peft
import pytest
import torch
from safetensors.torch import load_file
from small import TARGETS, net

import trimtab
from trimtab import init, kernels
from trimtab.testing import check_method

BERT = cases.by_name("bert")


def trained(model: Any) -> Any:
    """As after some training: every trained tensor moved."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trimtab.parameters(model):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("method", [trimtab.LoRA(anchored=True), trimtab.DoRA(anchored=True)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_laws_hold(method: Any) -> None:
    check_method(method).raise_if_broken()


def test_a_gate_acts_on_the_difference() -> None:
    model, x = net(), torch.randn(6, 12)
    before = model(x)
    trimtab.attach(model, trimtab.GatedLoRA(rank=3), TARGETS)
    init.pissa(model)
    torch.testing.assert_close(model(x), before)
    trained(model)
    assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("cls", [trimtab.LoRA, trimtab.DoRA])
def test_the_law_is_the_difference(cls: Any, rslora: bool) -> None:
    model, x = net(), torch.randn(6, 12)
    adapter = trimtab.attach(model, cls(rank=3, alpha=5, rslora=rslora), ["left"])
    init.pissa(model)
    trained(model)
    ((_, delta),) = adapter.deltas()
    W = model.left.base.weight
    W = W + delta.method.scale * (delta.B @ delta.A - delta.B0 @ delta.A0)
    if cls is trimtab.DoRA:
        W = delta.m[:, None] * W / W.norm(dim=1, keepdim=True)
    expected = x @ W.T + model.left.base.bias
    torch.testing.assert_close(model.left(x), expected)
    with kernels.disabled():
        torch.testing.assert_close(model.left(x), expected)
    trimtab.merge(model)
    torch.testing.assert_close(model.left.base.weight, W)


def test_the_kernel_has_the_laws_gradients() -> None:
    model, x = net(), torch.randn(6, 12)
    trimtab.attach(model, trimtab.LoRA(rank=3), TARGETS)
    init.olora(model)
    trained(model)
    model(x).square().sum().backward()
    fused = [p.grad.clone() for p in trimtab.parameters(model)]
    model.zero_grad()
    with kernels.disabled():
        model(x).square().sum().backward()
    for own, other in zip(trimtab.parameters(model), fused, strict=True):
        torch.testing.assert_close(own.grad, other, rtol=1e-4, atol=1e-5)


def test_small_changes_are_seen_in_half_precision() -> None:
    """A step smaller than bf16 can add to B₀ acts all the same."""
    model, x = net(torch.bfloat16), torch.randn(6, 12, dtype=torch.bfloat16)
    adapter = trimtab.attach(model, trimtab.LoRA(rank=8), ["left"])
    init.pissa(model)
    ((_, delta),) = adapter.deltas()
    with torch.no_grad():
        step = 1e-3 * delta.B
        delta.B += step
    expected = delta.method.scale * (x.float() @ delta.A.T) @ step.T
    found = delta.method.matvec(delta.values(torch.bfloat16), x)
    assert found.dtype == torch.bfloat16
    assert torch.dist(found.float(), expected) < 0.02 * expected.norm()


def test_it_is_saved_with_its_anchor(tmp_path: Path) -> None:
    model, x = net(), torch.randn(6, 12)
    trimtab.attach(model, trimtab.LoRA(rank=3), TARGETS)
    init.pissa(model)
    trained(model)
    trimtab.save(model, tmp_path / "a")
    again = net()
    trimtab.load(again, tmp_path / "a")
    assert torch.equal(again(x), model(x))
    assert {"left.lora.A0", "left.lora.B0"} <= load_file(tmp_path / "a/adapter.safetensors").keys()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hf_peft_reads_it_as_twice_the_rank(tmp_path: Path, dora: bool, rslora: bool) -> None:
    model = BERT.model().eval()
    cls = trimtab.DoRA if dora else trimtab.LoRA
    plan = {"*.query": cls(rank=2, alpha=3, rslora=rslora)}
    plan |= {"*.value": cls(rank=3, alpha=3, rslora=rslora)}
    trimtab.attach(model, plan, train=["classifier"])
    init.olora(model)
    trained(model)
    trimtab.save(model, tmp_path / "theirs", format="peft")
    there = peft.PeftModel.from_pretrained(BERT.model(), tmp_path / "theirs").eval()
    expected = cases.logits(model, BERT.batch())
    torch.testing.assert_close(cases.logits(there, BERT.batch()), expected, rtol=1e-4, atol=1e-5)
    again = BERT.model().eval()
    adapter = trimtab.load(again, tmp_path / "theirs")
    torch.testing.assert_close(cases.logits(again, BERT.batch()), expected, rtol=1e-4, atol=1e-5)
    ranks = {m.rank for _, m in adapter.entries if m.name in ("lora", "dora")}
    assert ranks == {4, 6}
