"""The product of low rank that several methods share: its hyper-parameters, factors and scale.

How its factors train is a choice of its own: B at `lr_ratio` times the learning rate (LoRA+, Hayou
2024, arXiv:2402.12354), or B alone (LoRA-FA, Zhang 2023, arXiv:2308.03303).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Method, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


def difference(
    A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Factors of twice the rank of B A - B₀ A₀, for a computation of this dtype.

    They are those of (B - B₀) A + B₀ (A - A₀), which is the same: the differences are taken in full
    precision, vanish at the start, and stay visible beside a large B₀ A₀.
    """
    A, B = torch.cat([A, A - A0], -2), torch.cat([B - B0, B0], -1)
    return (A.to(dtype), B.to(dtype)) if dtype and dtype.is_floating_point else (A, B)


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """scale B A, with A (rank, in) and B (out, rank), which starts at zero.

    `anchored`: scale (B A - B₀ A₀), for factors that start elsewhere (`trimtab.init`). A₀ and B₀
    stay as they are, so that the adapted model starts at the base, which stays as it is too.
    """

    rank: int = option(8, "r, the rows of A and the columns of B")
    alpha: float = option(16.0, "numerator of the scale alpha / r")
    rslora: bool = option(
        False, "scale by alpha / √r, which keeps the update's size as the rank grows"
    )
    lr_ratio: float = option(
        1.0, "B's learning rate over A's (LoRA+'s λ), by `trimtab.parameters(model, lr=…)`"
    )
    freeze_a: bool = option(False, "A stays as it was drawn and B alone trains (LoRA-FA)")
    anchored: bool = option(
        False,
        "subtract where the factors start, B₀ A₀: for the starts of `trimtab.init`, which set it",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("lr_ratio", self.lr_ratio > 0, "be above 0")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def init(self, site: Site) -> dict[str, Param]:
        A = kaiming(self.rank, site.in_features)
        return self.begun(A, torch.zeros(site.out_features, self.rank))

    def begun(self, A: Tensor, B: Tensor) -> dict[str, Param]:
        """Parameters that start at these factors."""
        factors = {
            "A": Param(A, trained=not self.freeze_a, exact=self.anchored),
            "B": Param(B, rate=self.lr_ratio, exact=self.anchored),
        }
        if self.anchored:
            fixed = {"A0": A.clone(), "B0": B.clone()}
            factors |= {n: Param(t, trained=False, exact=True) for n, t in fixed.items()}
        return factors

    def factors(self, p: Values, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(A, B) of the change over its scale, for a computation of this dtype."""
        return difference(p.A, p.B, p.A0, p.B0, dtype) if self.anchored else (p.A, p.B)

    def product(self, p: Values) -> Tensor:
        """The change over its scale, (out, in)."""
        A, B = self.factors(p)
        return B @ A

    def alike(self, p: Values) -> tuple[Method, dict[str, Tensor]] | None:
        """Without an anchor, of twice the rank."""
        if not self.anchored:
            return None
        A, B = self.factors(p)
        alpha = self.alpha * (math.sqrt(2) if self.rslora else 2)
        kept = {name: tensor for name, tensor in p.tensors.items() if name not in ("A0", "B0")}
        same = replace(self, rank=2 * self.rank, alpha=alpha, anchored=False)
        return same, {**kept, "A": A, "B": B}


@dataclass(frozen=True, kw_only=True)
class Update(LowRank, Additive):
    """W' = W + scale B A."""

    def delta(self, p: Values) -> Tensor:
        return self.scale * self.product(p)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A, B = self.factors(p, x.dtype)
        return self.scale * linear(linear(x, A), B)
