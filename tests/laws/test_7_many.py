"""Law 7: several adapters on one base, one an example, one upon the other."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import suite
from broken import Drifting
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values

LORA = trimtab.LoRA(rank=3)


@suite.held(7)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


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


class Alone(trimtab.LoRA):
    """It reaches past what lies beneath, down to the base."""

    def forward(self, p: Values, x: Tensor, inner: Any, *call: Any) -> Tensor:
        while hasattr(inner, "inner"):
            inner = inner.inner
        return super().forward(p, x, inner, *call)


class Mingling(trimtab.LoRA):
    """What it does to an example depends on the others of the batch."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return super().matvec(p, x - x.mean(0, keepdim=True) / 2)


def test_controls() -> None:
    suite.breaks(Drifting(), "several", "one of three")
    suite.breaks(Drifting(), "removal", "after another was removed")
    suite.breaks(Alone(), "stack", "stack")


def test_control_of_routes() -> None:
    suite.breaks(Mingling(), "route", "routed to")
