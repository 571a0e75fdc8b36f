"""An update of rank one: the smallest method that Trimtab can train.

    W' = W + u vᵀ,   u (out,) from zero, v (in,) at random
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.method import Additive, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class RankOne(Additive):
    """One direction a site."""

    name = "rank-one"
    learning_rate = 5e-3

    def init(self, site: Site) -> dict[str, Param]:
        v = torch.randn(site.in_features) / site.in_features**0.5
        return {"u": Param(torch.zeros(site.out_features)), "v": Param(v)}

    def delta(self, p: Values) -> Tensor:
        return torch.outer(p.u, p.v)

    def matvec(self, p: Values, x: Tensor) -> Tensor:  # a shortcut: the law above is enough
        return linear(linear(x, p.v[None]), p.u[:, None])
