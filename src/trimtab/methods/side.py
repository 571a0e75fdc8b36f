"""LST: Ladder Side-Tuning. Sung, Cho and Bansal 2022, arXiv:2206.06522.

    gᵢ = fᵢ(μᵢ Dᵢ hᵢ + (1 - μᵢ) gᵢ₋₁),   μᵢ = sigmoid(aᵢ / T),   y' = y + U g

A narrow network beside the base: its rung i reads what block i gives, hᵢ, through a gate and a
small residual block f(g) = g + B σ(A g), where the paper has a narrow transformer block. Nothing of
the base is on the way back from the loss, which saves the memory of its activations.

Use it where the memory of training is the limit: no activation of the base is kept, since nothing
goes back through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.layout import runs
from trimtab.core.method import Beside, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Side(Beside):
    """A narrow ladder beside the base. It starts at the base, U being zero."""

    name = "side"
    paper = "arXiv:2206.06522"
    learning_rate = 3e-3

    reduction: int = option(8, "the stack's width over the ladder's")
    temperature: float = option(0.1, "T of the gates μᵢ: the smaller, the sharper")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("reduction", self.reduction >= 1, "be at least 1")
        self.require("temperature", self.temperature > 0, "be above 0")

    def init(self, site: Site) -> dict[str, Param]:
        d, n = site.out_features, len(runs(site.module)[0].blocks)
        w = max(1, d // self.reduction)
        return {
            "D": Param(torch.randn(n, w, d) / math.sqrt(d)),
            "gate": Param(torch.zeros(n)),
            "A": Param(torch.randn(n, w, w) / math.sqrt(w)),
            "B": Param(torch.randn(n, w, w) / math.sqrt(w)),
            "U": Param(torch.zeros(d, w)),
        }

    def edit(self, p: Values, taps: Sequence[Tensor], y: Tensor, call: Call) -> Tensor:
        mu = (p.gate / self.temperature).sigmoid()
        g = y.new_zeros(())
        for i, tap in enumerate(taps):
            h = F.layer_norm(tap.detach(), tap.shape[-1:])
            g = mu[i] * linear(h, p.D[i]) + (1 - mu[i]) * g
            g = g + linear(F.gelu(linear(g, p.A[i])), p.B[i])
        return y + linear(g, p.U)
