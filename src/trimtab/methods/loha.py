"""LoHa: low-rank Hadamard product. Hyeon-Woo, Ye-Bin and Oh 2022 (FedPara), arXiv:2108.06098.

    W' = W + (alpha / r) (B1 A1) ∘ (B2 A2),   A1, A2 (r, in),   B1, B2 (out, r)

The product of two matrices of rank r has rank up to r². A2 starts at zero, so that the adapted
model starts at the base.

Use it where the update needs a higher rank than LoRA's at the same number of parameters; it is
common for images. Each step forms the whole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class LoHa(Additive):
    """The elementwise product of two low-rank updates."""

    name = "loha"
    paper = "arXiv:2108.06098"
    learning_rate = 9e-3
    dense = True
    hf: ClassVar[Names | None] = Names(
        peft_type="LOHA",
        tensors={"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
        fields={"rank": "r", "alpha": "alpha"},
    )

    rank: int = option(8, "r of each of the two factors: their product has up to r²")
    alpha: float = option(8.0, "numerator of the scale alpha / r")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")

    def init(self, site: Site) -> dict[str, Param]:
        def random(*shape: int) -> Param:
            return Param(kaiming(*shape))

        return {
            "B1": random(site.out_features, self.rank),
            "A1": random(self.rank, site.in_features),
            "B2": random(site.out_features, self.rank),
            "A2": Param(torch.zeros(self.rank, site.in_features)),
        }

    def delta(self, p: Values) -> Tensor:
        return (self.alpha / self.rank) * (p.B1 @ p.A1) * (p.B2 @ p.A2)
