"""Law 9: over a quantised base a method is what it is over the plain base with the same values."""

from __future__ import annotations

from typing import Any

import pytest
import suite
from broken import Crooked, Forgetful
from torch import Tensor

import trimtab
from trimtab.core.call import Call
from trimtab.core.method import Method, Values
from trimtab.core.operator import Operator, linear
from trimtab.quant import FORMATS
from trimtab.testing.laws.quantised import ROUNDS_ITS_INPUT


@suite.held(9)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


class Peeking(trimtab.LoRA):
    """It multiplies by the module's tensor, whatever that stands for."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        own: Any = inner
        y = linear(x, own.module.weight.data.to(x.dtype), own.module.bias)
        return y + self.matvec(p, x)


class Scribbling(trimtab.LoRA):
    """It writes into the base."""

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        own: Any = inner
        own.module.bias.data += 0.001
        return super().forward(p, x, inner, call)


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_controls(to: str) -> None:
    pytest.importorskip(FORMATS[to][0])
    suite.breaks(Scribbling(), "quantised", on=to)
    suite.breaks(Forgetful(), "quantised", "the loaded adapter", on=to)
    if to not in ROUNDS_ITS_INPUT:
        suite.breaks(Crooked(), "quantised", "merged into plain maps", on=to)


def test_codes_are_no_weights() -> None:
    pytest.importorskip("bitsandbytes")
    suite.breaks(Peeking(), "quantised", on="nf4")
    suite.breaks(Peeking(), "quantised", on="int8")
