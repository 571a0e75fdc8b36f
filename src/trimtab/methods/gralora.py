"""GraLoRA: granular low-rank adaptation. Jung et al. 2025, arXiv:2505.20355.

    W' = W + (alpha / (r + h)) ([Bₒᵢ Aₒᵢ] + H G),   Aₒᵢ (r / k, in / k), Bₒᵢ (out / k, r / k)

W is cut into k x k blocks, each with its own LoRA of rank r / k: as many parameters as LoRA, k
times its rank, and an outlier among the inputs disturbs one column of blocks only. The hybrid form
adds a plain LoRA H G of rank h. B and H start at zero, so that the adapted model starts at the
base.

Use it where LoRA gains nothing from higher ranks: blocks of their own keep one strong input channel
from ruling the whole update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import Patches, linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class GraLoRA(Additive):
    """LoRA by blocks of the matrix, and a plain one beside it if `hybrid` is not 0."""

    name = "gralora"
    paper = "arXiv:2505.20355"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="GRALORA",
        tensors={
            "A": "gralora_A",
            "B": "gralora_B",
            "G": "gralora_A_general.weight",
            "H": "gralora_B_general.weight",
        },
        fields={
            "rank": "r",
            "alpha": "alpha",
            "blocks": "gralora_k",
            "hybrid": "hybrid_r",
            "dropout": "gralora_dropout",
        },
        transposed=True,
        biases="gralora_only",
        patterns=(),
    )

    rank: int = option(32, "r of a row of blocks, each of rank r / k: a multiple of `blocks`")
    alpha: float = option(64.0, "numerator of the scale alpha / (r + h)")
    blocks: int = option(2, "k, blocks along either side of the matrix; must divide both widths")
    hybrid: int = option(0, "h, rank of the plain LoRA beside the blocks; 0: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("blocks", self.blocks >= 1, "be at least 1")
        whole = self.rank >= 1 and self.rank % self.blocks == 0
        self.require("rank", whole, f"be a multiple of blocks={self.blocks}")
        self.require("hybrid", self.hybrid >= 0, "be at least 0")

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is None and (site.in_features % self.blocks or site.out_features % self.blocks):
            sides = f"{site.in_features} and {site.out_features}"
            reason = f"its widths {sides} must be multiples of blocks={self.blocks}"
        return reason

    def init(self, site: Site) -> dict[str, Param]:
        k, r, h, inner, outer = (
            *(self.blocks, self.rank, self.hybrid),
            *(site.in_features, site.out_features),
        )
        bound = 1 / math.sqrt(inner // k)
        p = {
            "A": Param(torch.empty(k, inner // k, r).uniform_(-bound, bound)),
            "B": Param(torch.zeros(k, r, outer // k)),
        }
        if h:
            p |= {"G": Param(kaiming(h, inner)), "H": Param(torch.zeros(outer, h))}
        return p

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank + self.hybrid)

    def delta(self, p: Values) -> Tensor:
        A = p.A.unflatten(2, (self.blocks, -1))  # (i, in / k, o, r / k)
        B = p.B.unflatten(1, (self.blocks, -1))  # (o, i, r / k, out / k)
        W = torch.einsum("ixor,oiry->oyix", A, B).flatten(2).flatten(0, 1)
        return self.scale * (W + p.H @ p.G if self.hybrid else W)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        if isinstance(x, Patches) or not x.is_floating_point():
            return super().matvec(p, x)
        low = torch.einsum("...ix,ixr->...ir", x.unflatten(-1, (self.blocks, -1)), p.A)
        low = low.unflatten(-1, (self.blocks, -1)).transpose(-3, -2).flatten(-2)  # (…, o, r)
        y = torch.einsum("...or,ory->...oy", low, p.B).flatten(-2)
        return self.scale * (y + linear(linear(x, p.G), p.H) if self.hybrid else y)
