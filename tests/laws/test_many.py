"""Law 7: several adapters live on one base, each as if alone; removing one leaves the rest."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.method import Method, Selection

LORA = trimtab.LoRA(rank=3)


def three(architecture: cases.Architecture, method: Method) -> nn.Module:
    """The method twice, with other values, and a LoRA between."""
    model = architecture.model()
    for seed, (name, one) in enumerate([("a", method), ("b", LORA), ("c", method)]):
        torch.manual_seed(0)
        cases.perturb(cases.attach(model, one, name=name), seed=seed + 1)
    return model


def alone(architecture: cases.Architecture, method: Method, seed: int) -> torch.Tensor:
    model = architecture.model()
    torch.manual_seed(0)
    cases.perturb(cases.attach(model, method), seed=seed)
    return cases.logits(model, architecture.batch())


@cases.pairs([method for method in cases.METHODS if method.name != "lora"])
def test_activating_one_equals_having_it_alone(
    method: Method, architecture: cases.Architecture
) -> None:
    model, batch = three(architecture, method), architecture.batch()
    base = cases.logits(architecture.model(), batch)
    for name, seed in {"c": 3, "a": 1}.items():
        trimtab.activate(model, name)
        assert torch.equal(cases.logits(model, batch), alone(architecture, method, seed))
        trained = {id(p) for p in model._trimtab.adapter(name).parameters()}  # type: ignore[union-attr]
        assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    trimtab.activate(model, None)
    assert torch.equal(cases.logits(model, batch), base)


@cases.pairs()
def test_adapters_differ(method: Method, architecture: cases.Architecture) -> None:
    model, batch = three(architecture, method), architecture.batch()
    outputs = []
    for name in ("a", "b", "c"):
        trimtab.activate(model, name)
        outputs.append(cases.logits(model, batch))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cases.assert_differs(outputs[one], outputs[other])


@cases.pairs()
def test_removing_one_leaves_the_rest_bit_for_bit(
    method: Method, architecture: cases.Architecture
) -> None:
    model, batch = three(architecture, method), architecture.batch()
    before, outputs = cases.state(model), {}
    for name in ("a", "b"):
        trimtab.activate(model, name)
        outputs[name] = cases.logits(model, batch)
    trimtab.detach(model, "c")
    trimtab.activate(model, None)
    held = model.state_dict()
    gone = {name for name in before if ".deltas.c." in name}
    base = architecture.model().state_dict()
    assert set(held) == set(before) - gone
    assert all(torch.equal(held[name], base.get(name, before[name])) for name in held)
    for name in ("a", "b"):
        trimtab.activate(model, name)
        assert torch.equal(cases.logits(model, batch), outputs[name])


@cases.pairs(cases.AFFINE)
def test_a_stack_is_one_law_upon_the_other(
    method: Method, architecture: cases.Architecture
) -> None:
    """In either order: W'' = outer(inner(W)); merged equals unmerged, and unmerging restores."""
    model, batch = architecture.model(), architecture.batch()
    cases.perturb(cases.attach(model, method, name="a"), seed=1)
    cases.perturb(cases.attach(model, LORA, name="b"), seed=2)
    hosts = model._trimtab.adapter("a").hosts  # type: ignore[union-attr]
    for names in (("a", "b"), ("b", "a")):
        trimtab.activate(model, trimtab.Stack(*names))
        for host in hosts.values():
            W, b = host.geometry.read(host.base.weight.detach()), host.base.bias
            for name in names:
                for delta in host.stack(name).values():
                    W, b = delta.method.affine(delta.values(torch.float32), W, b)
            torch.testing.assert_close(host.operator().weight, W)
            assert (host.operator().bias is None) == (b is None)
        unmerged = cases.logits(model, batch)
        trimtab.merge(model)
        torch.testing.assert_close(cases.logits(model, batch), unmerged, rtol=1e-4, atol=1e-4)
        trimtab.unmerge(model)
        assert torch.equal(cases.logits(model, batch), unmerged)


@cases.pairs([m for m in cases.METHODS if cases.affine(m) or isinstance(m, Selection)])
def test_a_stack_of_two_trains_both(method: Method, architecture: cases.Architecture) -> None:
    model, batch = architecture.model(), architecture.batch()
    first = cases.attach(model, method, name="a")
    second = cases.attach(model, LORA, name="b")
    cases.perturb(first, seed=1)
    trimtab.activate(model, "a")
    one = cases.logits(model, batch)
    cases.perturb(second, seed=2)
    trimtab.activate(model, trimtab.Stack("a", "b"))
    cases.assert_differs(cases.logits(model, batch), one)
    cases.loss(model, batch).backward()
    trained = {id(p) for p in [*first.parameters(), *second.parameters()]}
    assert {id(p) for p in model.parameters() if p.grad is not None} == trained
    assert {id(p) for p in trimtab.parameters(model)} == trained


def test_order_matters() -> None:
    bert = cases.by_name("bert")
    model, batch = bert.model(), bert.batch()
    cases.perturb(trimtab.attach(model, trimtab.IA3(), name="a"))
    cases.perturb(trimtab.attach(model, LORA, name="b"))
    outputs = []
    for names in (("a", "b"), ("b", "a")):
        trimtab.activate(model, trimtab.Stack(*names))
        outputs.append(cases.logits(model, batch))
    cases.assert_differs(*outputs)


def test_what_activate_refuses() -> None:
    model = cases.by_name("bert").model()
    for name in ("one", "two"):
        trimtab.attach(model, trimtab.Head(), name=name)
    trimtab.attach(model, LORA, name="lora")
    with pytest.raises(trimtab.InputError, match="only one can be active"):
        trimtab.activate(model, trimtab.Stack("one", "two"))
    with pytest.raises(trimtab.InputError, match="once in a composition"):
        trimtab.activate(model, trimtab.Stack("lora", "lora"))
    with pytest.raises(trimtab.InputError, match=r"'lroa'; nearest: 'lora'"):
        trimtab.activate(model, "lroa")
    assert model._trimtab.switch.active == ("lora",)  # type: ignore[union-attr]
