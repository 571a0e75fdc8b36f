"""Law 11: changing the active adapters between a forward and its backward raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import cases
import pytest
import suite
from torch import Tensor, nn

import trimtab
from trimtab.core import watch
from trimtab.core.method import Method, Values
from trimtab.testing.laws.checkpointing import checkpoint
from trimtab.testing.laws.switching import CHANGES


@suite.held(11)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["off", "plain", "reentrant"])
@cases.rotation([trimtab.LoRA(), trimtab.LoRA(), trimtab.IA3(), trimtab.IA3()])
def test_every_change_under_every_checkpointing(
    method: Method,
    architecture: cases.Architecture,
    reentrant: bool | None,
    change: Callable[[nn.Module], object],
) -> None:
    model = architecture.model().train()
    trimtab.attach(model, trimtab.LoRA(), name="second")
    cases.perturb(trimtab.attach(model, method))
    if reentrant is not None:
        checkpoint(model, reentrant=reentrant)
    loss = cases.loss(model, architecture.batch())
    change(model)
    with pytest.raises(trimtab.StateError, match="changed between a forward pass and its backward"):
        loss.backward()
    assert cases.gradients(model) == {}


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_control_of_switching(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing watches, the law is broken."""
    law = suite.LAWS["switch"]
    where = next(one for one in law.over if one.name == name)
    monkeypatch.setattr(watch.PinVersion, "__call__", lambda *_: None)
    assert "goes unnoticed" in suite.row(trimtab.LoRA(), law, where).why


class Hoarding(trimtab.LoRA):
    """It keeps its product from call to call, and with it a graph that is spent."""

    products: ClassVar[dict[int, Tensor]] = {}

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        delta = self.products.setdefault(id(p.B), p.B @ p.A)
        return self.scale * (x @ delta.T)


def test_control_of_freedom() -> None:
    suite.breaks(Hoarding(), "free", "backward through the graph a second time")
