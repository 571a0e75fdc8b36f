"""Methods that break several laws, each in one way."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

import trimtab
from trimtab.core.method import Values


class Deaf(trimtab.LoRA):
    """Its parameters never reach the output."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return 0 * super().matvec(p, x)


class Forgetful(trimtab.LoRA):
    """Its shortcut forgets the scale that its law states."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return x @ p.A.T @ p.B.T


class Crooked(trimtab.IA3):
    """Its law leaves the bias as it was, its forward scales it."""

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return super().affine(p, W, b)[0], b


class Drifting(trimtab.LoRA):
    """It never computes the same thing twice."""

    calls: ClassVar[list[None]] = []

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        self.calls.append(None)
        return super().matvec(p, x) * (1 + len(self.calls) / 10)
