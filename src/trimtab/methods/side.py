"""Ladder side tuning. Sung, Cho and Bansal 2022, arXiv:2206.06522.

    g₀ = D₀ h₀,   gᵢ = μᵢ D hᵢ + (1 - μᵢ) gᵢ₋₁ through a small block,   y' = y + U g

A narrow network beside the base reads its blocks' outputs; no gradient runs through the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.method import Beside, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Side(Beside):
    """A ladder of `width` beside the stack."""

    name = "side"
    paper = "arXiv:2206.06522"
    width: int = 8

    def init(self, site: Site) -> dict[str, Param]:
        d = site.out_features
        return {
            "D": Param(torch.randn(self.width, d) * 0.1),
            "U": Param(torch.zeros(d, self.width)),
        }

    def edit(self, p: Values, taps: Sequence[Tensor], y: Tensor, call: Call) -> Tensor:
        g = linear(torch.stack(list(taps)).detach().sum(0), p.D)
        return y + linear(F.gelu(g), p.U)
