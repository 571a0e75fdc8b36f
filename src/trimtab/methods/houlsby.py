"""Adapters: Parameter-Efficient Transfer Learning for NLP. Houlsby et al. 2019, arXiv:1902.00751.

    h' = h + U σ(D h + d) + u,   D (m, d), U (d, m), after attention and after feed-forward

U and u start at zero, so that the adapted model starts at the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.method import Intervention, Param, Values
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Houlsby(Intervention):
    """A bottleneck of `width` after each sublayer."""

    name = "houlsby"
    paper = "arXiv:1902.00751"

    width: int = 16

    def init(self, site: Site) -> dict[str, Param]:
        D = nn.init.kaiming_uniform_(torch.empty(self.width, site.out_features), a=math.sqrt(5))
        U = torch.zeros(site.out_features, self.width)
        return {
            "D": Param(D),
            "d": Param(torch.zeros(self.width)),
            "U": Param(U),
            "u": Param(torch.zeros(site.out_features)),
        }

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + F.linear(F.gelu(F.linear(y, p.D, p.d)), p.U, p.u)
