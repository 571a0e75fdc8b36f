"""DeLoRA: decoupling angles and strength in low-rank adaptation. Bini, Girrbach and Akata 2025,
arXiv:2503.18225.

    W' = W + Δ(A, B, λ) - Δ(A₀, B₀, λ₀)
    Δ(A, B, λ) = (λ / r) B diag(1 / ‖aᵢ‖‖bᵢ‖) A diag(‖wⱼ‖),   A (r, in), B (out, r)

The norms of A's rows and of B's columns do not matter: their directions are learnt, and λ bounds
how far W' goes, relative to the norms of W's columns. A and B start at random, and what they make
there is taken off, so that the adapted model starts at the base.

Use it where training is long or the learning rate uncertain: the change cannot grow beyond its
strength.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.lowrank import difference
from trimtab.core.method import Additive, Method, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site
from trimtab.methods._peft_delora import DELORA_NAMES, SHORT, unanchored


@dataclass(frozen=True, kw_only=True)
class DeLoRA(Additive):
    """A low-rank update of normalised directions under a trained bound. Not `anchored`, a norm
    below 1e-4 counts as that, so that the first step turns B to the full strength."""

    name = "delora"
    paper = "arXiv:2503.18225"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = DELORA_NAMES

    rank: int = option(8, "r, the rows of A and the columns of B")
    strength: float = option(15.0, "λ₀, where the trained bound λ starts")
    anchored: bool = option(
        True, "take off what the start makes; False: B starts at zero, as in HF PEFT"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        free = self.strength > 0 or not self.anchored
        self.require("strength", free, "be above 0 if it is anchored, or nothing is learnt")

    def init(self, site: Site) -> dict[str, Param]:
        W = site.matrix
        norm = torch.linalg.vector_norm(W, dim=0, dtype=torch.promote_types(W.dtype, torch.float32))
        fixed = {"norm": Param(norm, trained=False)}
        A = kaiming(self.rank, site.in_features)
        B = torch.zeros(site.out_features, self.rank)
        if self.anchored:
            B = kaiming(site.out_features, self.rank)
            start = {"A0": A.clone(), "B0": B.clone()}
            fixed |= {name: Param(t, trained=False, exact=True) for name, t in start.items()}
        trained = {"A": A, "B": B, "strength": torch.full((1,), float(self.strength))}
        return {name: Param(t, exact=self.anchored) for name, t in trained.items()} | fixed

    def _scaled(self, p: Values, A: Tensor, B: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        lengths = A.norm(dim=1).clamp_min(SHORT) * B.norm(dim=0).clamp_min(SHORT)
        return A * p.norm, B * (strength / self.rank / lengths)

    def _factors(self, p: Values, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        A, B = self._scaled(p, p.A, p.B, p.strength)
        if not self.anchored:
            return A, B
        first = torch.full_like(p.strength, self.strength)
        return difference(A, B, *self._scaled(p, p.A0, p.B0, first), dtype)

    def delta(self, p: Values) -> Tensor:
        A, B = self._factors(p)
        return B @ A

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A, B = self._factors(p, x.dtype)
        return linear(linear(x, A), B)

    def alike(self, p: Values) -> tuple[Method, dict[str, Tensor]] | None:
        """Without an anchor, of twice the rank."""
        if not self.anchored:
            return None
        return replace(self, rank=2 * self.rank, anchored=False), unanchored(p, self.strength)
