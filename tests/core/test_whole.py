"""Modules trained whole beside an adapter, and selections of the base's own parameters."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.adapt import select
from trimtab.core.method import Method

BERT = cases.by_name("bert")


def test_two_adapters_have_two_heads() -> None:
    model, batch = BERT.model(), BERT.batch()
    base = cases.logits(model, batch)
    outputs = {}
    for seed, name in enumerate(("a", "b")):
        adapter = trimtab.attach(model, trimtab.LoRA(), name=name, train=["classifier"])
        torch.testing.assert_close(cases.logits(model, batch), base)
        cases.perturb(adapter, seed=seed)
        outputs[name] = cases.logits(model, batch)
        assert f"classifier.deltas.{name}.whole.bias" in model.state_dict()
    cases.assert_differs(outputs["a"], outputs["b"])
    head: Any = model.get_submodule("classifier")
    assert torch.equal(head.weight, BERT.model().get_submodule("classifier").weight)
    trimtab.activate(model, "a")
    assert torch.equal(cases.logits(model, batch), outputs["a"])
    cases.loss(model, batch).backward()
    assert head.deltas["a"]["whole"].weight.grad is not None
    assert head.deltas["b"]["whole"].weight.grad is None
    assert head.weight.grad is None
    trimtab.merge(model)
    torch.testing.assert_close(cases.logits(model, batch), outputs["a"], rtol=1e-4, atol=1e-4)
    assert torch.equal(head.weight, head.deltas["a"]["whole"].weight)
    trimtab.unmerge(model)
    trimtab.activate(model, None)
    assert torch.equal(cases.logits(model, batch), base)


def test_one_head_needs_the_other_gone() -> None:
    model = BERT.model()
    for name in ("a", "b"):
        trimtab.attach(model, trimtab.LoRA(), name=name, train=["classifier"])
    before = cases.logits(model, BERT.batch())
    with pytest.raises(trimtab.InputError, match="'classifier' is trained whole by one adapter"):
        trimtab.activate(model, trimtab.Stack("a", "b"))
    assert torch.equal(cases.logits(model, BERT.batch()), before)


def test_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(trimtab.InputError, match=r"'1' cannot be trained whole.*statistics"):
        trimtab.attach(model, trimtab.LoRA(), to="0", train=["1"])
    assert not hasattr(model, "_trimtab")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_embedding_trained_whole(dtype: torch.dtype) -> None:
    """Its input has no floating dtype to cast to: the base's own is taken."""
    llama = cases.by_name("llama")
    model, batch = llama.model().to(dtype), llama.batch()
    base = cases.logits(model, batch)
    adapter = trimtab.attach(model, trimtab.LoRA(), train=["embed_tokens"])
    assert torch.equal(cases.logits(model, batch), base)
    cases.perturb(adapter)
    assert cases.logits(model, batch).dtype == dtype
    cases.loss(model, batch).backward()
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert all(p.grad is not None for p in adapter.parameters())


class Nested(nn.Module):
    """A module with a parameter of its own around a child: each is a site, one within the other."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4))
        self.child = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(x) + self.shift


def test_a_site_within_a_site() -> None:
    model, x = nn.Sequential(Nested(), nn.Linear(4, 2)), torch.randn(3, 4)
    base, names = model(x), list(model.state_dict())
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), "1", train=["0"])
    assert {"0", "0.child", "1"} == set(adapter.hosts)
    assert torch.equal(model(x), base)
    cases.perturb(adapter)
    adapted = model(x)
    adapted.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    trimtab.merge(model)
    torch.testing.assert_close(model(x), adapted)
    trimtab.unmerge(model)
    trimtab.detach(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("method", [trimtab.Full(), trimtab.Head()], ids=lambda m: m.name)
@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_a_selection_comes_and_goes(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    base, outputs = cases.state(model), cases.logits(model, batch)
    cases.perturb(cases.attach(model, method))
    trained, adapted = cases.state(model), cases.logits(model, batch)
    cases.assert_differs(adapted, outputs)
    for _ in range(2):
        trimtab.activate(model, None)
        cases.assert_same_state(model, base)
        assert torch.equal(cases.logits(model, batch), outputs)
        trimtab.activate(model, "default")
        cases.assert_same_state(model, trained)
        assert torch.equal(cases.logits(model, batch), adapted)
    trimtab.detach(model)
    cases.assert_same_state(model, base)


def test_a_selection_remembers_the_base_beneath_another() -> None:
    """As loading meets it: chosen while another's trained values are in place."""
    model = BERT.model()
    base = cases.state(model)
    cases.perturb(trimtab.attach(model, trimtab.Full()))
    originals = select(model, trimtab.Head(), "second").originals
    assert set(originals) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, base[name]) for name, tensor in originals.items())


@pytest.mark.parametrize("train", [[], ["classifier"]], ids=["selection", "whole"])
def test_what_comes_after_a_selection_starts_at_the_base(train: list[str]) -> None:
    """Attached while trained values are in place, it still stands on the base's own."""
    model, batch = BERT.model(), BERT.batch()
    base, outputs = cases.state(model), cases.logits(model, batch)
    cases.perturb(trimtab.attach(model, trimtab.Full(), name="full"))
    adapted = cases.logits(model, batch)
    method = trimtab.LoRA() if train else trimtab.Head()
    second = trimtab.attach(model, method, name="second", train=train)
    torch.testing.assert_close(cases.logits(model, batch), outputs)
    cases.perturb(second)
    trimtab.activate(model, None)
    held = model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in base.items())
    trimtab.activate(model, "full")
    assert torch.equal(cases.logits(model, batch), adapted)
    trimtab.detach(model, "full")
    trimtab.detach(model)
    cases.assert_same_state(model, base)
