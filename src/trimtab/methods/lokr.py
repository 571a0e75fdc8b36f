"""LoKr: low-rank Kronecker product. Yeh et al. 2023 (LyCORIS), arXiv:2309.14859.

    W' = W + (alpha / r) C ⊗ D,   C (o₁, i₁), D (o₂, i₂),   o₁ o₂ = out, i₁ i₂ = in

The rank of a Kronecker product is the product of the ranks. D is of low rank, D = B A, where `rank`
is less than half of its larger side; a convolution's D reads its kernel too. C starts at zero, so
that the adapted model starts at the base.

Use it where files must be small and the rank high: a Kronecker product of two small factors has
full rank; common for images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import Patches, linear
from trimtab.core.site import Site
from trimtab.methods._peft_lokr import LOKR_NAMES


@dataclass(frozen=True, kw_only=True)
class LoKr(Additive):
    """A Kronecker product of two small matrices, of which one or both may be of low rank."""

    name = "lokr"
    paper = "arXiv:2309.14859"
    learning_rate = 9e-3
    hf: ClassVar[Names | None] = LOKR_NAMES

    rank: int = option(8, "r of D's own factors, where that is less than half its larger side")
    alpha: float = option(8.0, "numerator of the scale alpha / r")
    factor: int = option(-1, "most rows and columns of C; -1: about the square root of the widths")
    both: bool = option(False, "C is of rank r too, where that is less than half its larger side")
    tucker: bool = option(False, "a convolution's D is a core (r, r, kernel) between two factors")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("factor", self.factor == -1 or self.factor >= 1, "be -1 or at least 1")

    def unused(self, sites: Sequence[Site]) -> str | None:
        """`both` and `tucker` ask for factors that a high rank, or a map without a kernel, has
        not."""
        with torch.device("meta"):
            names = {name for site in sites for name in self.init(site)}
        if self.both and "C_b" not in names:
            return f"both=True has no effect: C is too small for factors of rank {self.rank}"
        if self.tucker and "T" not in names:
            return "tucker=True has no effect: it takes a convolution with a kernel, and a low rank"
        return super().unused(sites)

    def init(self, site: Site) -> dict[str, Param]:
        r, g = self.rank, site.geometry
        width = g.shape[1] if g.kind == "conv" else g.in_features
        kernel = g.in_features // width
        (o1, o2), (i1, i2) = self._split(g.out_features), self._split(width)
        p: dict[str, Param] = {}
        if self.both and r < max(o1, i1) / 2:
            p |= {"C_b": Param(torch.zeros(o1, r)), "C_a": _random(r, i1)}
        else:
            p["C"] = Param(torch.zeros(o1, i1))
        if r >= max(o2, i2) / 2:
            p["D"] = _random(o2, i2 * kernel)
        elif self.tucker and kernel > 1:
            p |= {"T": _random(r, r * kernel), "D_b": _random(r, o2), "D_a": _random(r, i2)}
        else:
            p |= {"D_b": _random(o2, r), "D_a": _random(r, i2 * kernel)}
        return p

    def _split(self, width: int) -> tuple[int, int]:
        """The two factors of a width: `factor` itself where it divides it, or the largest one that
        is no larger than that and than the square root."""
        if width % self.factor == 0 and self.factor > 0:
            return self.factor, width // self.factor
        most = math.isqrt(width) if self.factor < 0 else min(self.factor, math.isqrt(width))
        first = next(d for d in range(most, 0, -1) if width % d == 0)
        return first, width // first

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        C = p.C if "C" in p.tensors else p.C_b @ p.C_a
        if "T" in p.tensors:
            T = p.T.unflatten(1, (self.rank, -1))
            return C, torch.einsum("rsk,ro,si->oik", T, p.D_b, p.D_a).flatten(1)
        return C, p.D if "D" in p.tensors else p.D_b @ p.D_a

    def delta(self, p: Values) -> Tensor:
        C, D = self._factors(p)
        product = C[:, None, :, None] * D[None, :, None, :]  # torch.kron fails on some strides
        return self.alpha / self.rank * product.flatten(2).flatten(0, 1)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        if isinstance(x, Patches) or not x.is_floating_point():
            return super().matvec(p, x)
        C, D = self._factors(p)
        parts = linear(x.unflatten(-1, (C.shape[1], D.shape[1])), D)
        return self.alpha / self.rank * linear(parts.mT, C).mT.flatten(-2)


def _random(*shape: int) -> Param:
    return Param(kaiming(*shape))
