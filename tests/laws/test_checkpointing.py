"""Law 6, second half: gradient checkpointing of either kind gives the gradients of none.
Law 11: changing the active adapters between a forward and its backward raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.method import Method, Selection

KINDS = pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])


@KINDS
@cases.pairs()
# Selections of a head leave nothing to train in a block, of which torch warns when it re-enters.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_gradients_equal_those_without(
    method: Method, architecture: cases.Architecture, reentrant: bool
) -> None:
    model, batch = architecture.model().train(), architecture.batch()
    cases.perturb(cases.attach(model, method))
    cases.loss(model, batch).backward()
    expected = {name: g.clone() for name, g in cases.gradients(model).items()}
    model.zero_grad()
    calls = checkpointed(model, reentrant)
    cases.loss(model, batch).backward()
    assert calls, "no block was checkpointed"
    found = cases.gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def checkpointed(model: Any, reentrant: bool) -> list[Any]:
    """Turn checkpointing on; the list grows with every block that is checkpointed."""
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls: list[Any] = []
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            inner = module._gradient_checkpointing_func

            def counted(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
                calls.append(args)
                return inner(*args, **kwargs)

            module._gradient_checkpointing_func = counted
    return calls


def _second(model: nn.Module) -> None:
    trimtab.activate(model, "second")


def _none(model: nn.Module) -> None:
    trimtab.activate(model, None)


def _there_and_back(model: nn.Module) -> None:
    trimtab.activate(model, None)
    trimtab.activate(model, "default")


def _attach(model: nn.Module) -> None:
    trimtab.attach(model, trimtab.LoRA(), name="third")


def _detach(model: nn.Module) -> None:
    trimtab.detach(model, "default")


def _merge(model: nn.Module) -> None:
    trimtab.merge(model)


CHANGES = [_second, _none, _there_and_back, _attach, _detach, _merge]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["off", "plain", "reentrant"])
@cases.rotation([trimtab.LoRA(), trimtab.LoRA(), trimtab.IA3(), trimtab.IA3()])
def test_changing_adapters_before_backward_raises(
    method: Method,
    architecture: cases.Architecture,
    reentrant: bool | None,
    change: Callable[[nn.Module], None],
) -> None:
    model = architecture.model().train()
    trimtab.attach(model, trimtab.LoRA(), name="second")
    cases.perturb(trimtab.attach(model, method))
    if reentrant is not None:
        checkpointed(model, reentrant)
    loss = cases.loss(model, architecture.batch())
    change(model)
    with pytest.raises(trimtab.StateError, match="changed between a forward pass and its backward"):
        loss.backward()
    assert cases.gradients(model) == {}


@cases.pairs()
def test_every_method_is_guarded(method: Method, architecture: cases.Architecture) -> None:
    model = architecture.model()
    cases.attach(model, method)
    loss = cases.loss(model, architecture.batch())
    trimtab.activate(model, None)
    with pytest.raises(trimtab.StateError):
        loss.backward()


@cases.rotation([m for m in cases.METHODS if not isinstance(m, Selection)])
def test_changing_after_backward_is_free(method: Method, architecture: cases.Architecture) -> None:
    model = architecture.model()
    cases.attach(model, method)
    for composition in (None, "default", None, "default"):
        trimtab.activate(model, composition)
        if composition:
            cases.loss(model, architecture.batch()).backward()
