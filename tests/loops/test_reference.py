"""`using` and `Reference`: other adapters within a step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import cases
import kinds
import pytest
import torch
from torch import Tensor, nn

import trimtab


def step(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(**kinds.batch()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def moved(kind: kinds.Kind) -> nn.Module:
    model = kind.adapted().eval()
    kinds.move(kinds.adapter_of(model))
    return model


def test_the_base_can_be_asked_between_forward_and_backward(
    kind: kinds.Kind, moved: nn.Module
) -> None:
    expected = step(moved)
    moved.zero_grad()
    loss = moved(**kinds.batch()).loss
    with torch.no_grad(), trimtab.using(moved, None):
        asked = moved(**kinds.batch()).logits
    loss.backward()
    assert torch.equal(asked, cases.logits(kind.base().eval(), kinds.batch()))
    cases.assert_differs(asked, cases.logits(moved, kinds.batch()))
    for name, gradient in cases.gradients(moved).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_so_it_can_under_activation_checkpointing(moved: nn.Module, reentrant: bool) -> None:
    expected = step(moved)
    moved.activation_checkpointing_enable({"use_reentrant": reentrant})
    moved.train().zero_grad()
    reference = trimtab.Reference(moved)
    loss = moved(**kinds.batch()).loss
    reference(**kinds.batch())
    loss.backward()  # runs the blocks again, with the adapter
    torch.testing.assert_close(cases.gradients(moved), expected)


@pytest.mark.parametrize("method", [trimtab.Full(), trimtab.Head()], ids=lambda one: one.name)
def test_so_it_can_where_the_base_itself_trains(method: trimtab.Full | trimtab.Head) -> None:
    base = cases.by_name("bert").model().eval()
    batch = cases.by_name("bert").batch()
    model = copy.deepcopy(base)
    cases.perturb(trimtab.attach(model, method), by=0.02)
    cases.loss(model, batch).backward()
    expected = {name: grad.clone() for name, grad in cases.gradients(model).items()}
    model.zero_grad()
    loss = cases.loss(model, batch)
    asked = trimtab.Reference(model)(**batch).logits
    loss.backward()
    assert torch.equal(asked, cases.logits(base, batch))
    for name, gradient in cases.gradients(model).items():
        assert torch.equal(gradient, expected[name]), name


def test_activate_within_a_step_is_still_refused(moved: nn.Module) -> None:
    loss = moved(**kinds.batch()).loss
    trimtab.activate(moved, None)
    moved(**kinds.batch())
    trimtab.activate(moved, "default")
    with pytest.raises(trimtab.StateError, match="call backward before activate"):
        loss.backward()


def test_a_backward_pass_does_not_cross_the_border(moved: nn.Module) -> None:
    outside = moved(**kinds.batch()).loss
    with (
        trimtab.using(moved, None),
        pytest.raises(trimtab.StateError, match="between a forward pass and its backward"),
    ):
        outside.backward()
    with trimtab.using(moved, "default"):
        inside = moved(**kinds.batch()).loss
    with pytest.raises(trimtab.StateError, match="between a forward pass and its backward"):
        inside.backward()


def test_what_was_active_is_so_again_after_an_error(moved: nn.Module) -> None:
    expected = cases.logits(moved, kinds.batch())
    with pytest.raises(ZeroDivisionError), trimtab.using(moved, None):
        _ = 1 / 0
    assert torch.equal(cases.logits(moved, kinds.batch()), expected)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: trimtab.activate(model, None),
        lambda model: trimtab.merge(model),
        lambda model: trimtab.detach(model),
        lambda model: trimtab.attach(model, trimtab.LoRA(), name="other"),
    ],
    ids=["activate", "merge", "detach", "attach"],
)
def test_nothing_is_changed_within_the_block(moved: nn.Module, verb: Any) -> None:
    expected, trained = cases.logits(moved, kinds.batch()), len(trimtab.parameters(moved))
    with (
        trimtab.using(moved, "default"),
        trimtab.using(moved, None),
        pytest.raises(trimtab.StateError, match=r"within `trimtab\.using`"),
    ):
        verb(moved)
    assert torch.equal(cases.logits(moved, kinds.batch()), expected)
    assert len(trimtab.parameters(moved)) == trained


def test_what_does_not_exist_or_is_merged_is_refused() -> None:
    model = kinds.METHODS[0].adapted()
    with pytest.raises(trimtab.InputError, match="no adapter is called 'sft'"):
        trimtab.Reference(model, "sft")
    trimtab.merge(model)
    with (
        pytest.raises(trimtab.StateError, match="merged"),
        trimtab.using(model, None),
    ):
        pass
    with pytest.raises(trimtab.StateError, match="carries no adapter"):
        trimtab.Reference(kinds.stories())


def test_a_reference_is_a_module_without_weights() -> None:
    model = kinds.METHODS[0].adapted()
    reference = trimtab.Reference(model)
    assert list(reference.parameters()) == []
    assert reference.state_dict() == {}
    assert reference.config is model.config
    assert not reference(**kinds.batch()).logits.requires_grad


def test_a_reference_has_no_dropout_and_leaves_every_mode_as_it_was() -> None:
    torch.manual_seed(0)
    model = kinds.random_gpt2(resid_pdrop=0.5)
    base = copy.deepcopy(model).eval()
    trimtab.attach(model, trimtab.LoRA())
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    batch = cases.by_name("gpt2").batch()
    asked = trimtab.Reference(model)(**batch).logits
    assert torch.equal(asked, cases.logits(base, batch))
    assert [module.training for module in model.modules()] == modes


def test_a_model_and_its_reference_copy_together() -> None:
    model = kinds.METHODS[0].adapted()
    pair = nn.ModuleList([model, trimtab.Reference(model)])
    for other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert other[1].adapted is other[0]
