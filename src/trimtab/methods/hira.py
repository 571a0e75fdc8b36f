"""HiRA: Hadamard high-rank adaptation. Huang et al. 2025, ICLR, openreview TwJrTz9cRS.

    W' = W + W ∘ (B A),   A (r, in), B (out, r)

The elementwise product with W, whose rank is high, makes an update of high rank out of a low-rank
one. B starts at zero, so that the adapted model starts at the base. The law needs W itself, in
floats, at every step.

Use it where the update needs a high rank, as reasoning does. Each step reads the base's own weight,
so that the base cannot stay quantised without cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.call import Call
from trimtab.core.draw import kaiming
from trimtab.core.method import InputDropout, Names, Param, Transform, Values, option
from trimtab.core.names import padded_otherwise
from trimtab.core.operator import Operator, dropout, linear
from trimtab.core.site import Geometry, Site


def _differs(method: Transform, geometry: Geometry, module: nn.Module) -> str | None:
    scaled = "it leaves out the scale of this embedding" if geometry.gain != 1 else None
    return scaled or padded_otherwise(method, geometry, module)


@dataclass(frozen=True, kw_only=True)
class HiRA(InputDropout, Transform):
    """Every weight is scaled by its own number; these make a matrix of low rank."""

    name = "hira"
    paper = "openreview:TwJrTz9cRS"
    kinds = frozenset({"linear", "embedding", "conv"})
    learning_rate = 6e-3
    dense = True
    hf: ClassVar[Names | None] = Names(
        peft_type="HIRA",
        tensors={"A": "hira_A", "B": "hira_B"},
        fields={"rank": "r", "dropout": "hira_dropout"},
        transposed=True,
        at={
            "embedding": {"A": "hira_embedding_A", "B": "hira_embedding_B"},
            "conv": {"A": "hira_A", "B": "hira_B"},
        },
        patches="A",
        patterns=(),  # there, `rank_pattern` is read and has no effect
        differs=_differs,
    )

    rank: int = option(32, "r, the rows of A and the columns of B")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")

    def init(self, site: Site) -> dict[str, Param]:
        A = kaiming(self.rank, site.in_features)
        return {"A": Param(A), "B": Param(torch.zeros(site.out_features, self.rank))}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W + W * (p.B @ p.A).to(W.dtype), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y, change = inner(x), inner.weight * (p.B @ p.A)
        side = dropout(x, self.dropout, p.training)
        added = linear(side, change.to(x.dtype) if x.dtype.is_floating_point else change)
        gain = inner.geometry.gain
        return y + (added if gain == 1 else gain * added).to(y.dtype)
