"""Law 8: at every kind of layer the method acts, or an error says why not."""

from __future__ import annotations

from typing import Any

import suite
from broken import Crooked, Deaf
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values


@suite.held(8)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


class Clumsy(trimtab.LoRA):
    """It fails on what it has accepted."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return super().matvec(p, x[:, :, :-1])


def test_controls() -> None:
    for layer in ("Linear", "Linear without bias", "transformers' Conv1D", "fused qkv"):
        suite.breaks(Deaf(), "layers", "nothing differs", on=layer)
        suite.breaks(Clumsy(), "layers", "Error", on=layer)
    suite.breaks(Crooked(), "layers", "merged", on="Linear")
    suite.breaks(Crooked(), "layers", "merged", on="transformers' Conv1D")
