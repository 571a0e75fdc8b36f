"""The adapter of AdapterFusion and MAD-X. Pfeiffer et al. 2021, arXiv:2005.00247.

    h' = h + s (U σ(D h + d) + u),   after feed-forward only

Half of Houlsby's bottlenecks, at the sublayer that matters more. At a norm N of the sum of a
sublayer and its residual, x, where the paper has it in models that norm their sums (BERT):

    y' = N(x + s (U σ(D N(x) + d) + u))

At a whole block, h is the block's output.

Use it where bottlenecks are to be stacked or fused, and for the adapters that AdapterHub publishes:
half of Houlsby's parameters and latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.method import Values
from trimtab.core.operator import Operator


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(Bottleneck):
    """A bottleneck after each feed-forward sublayer, a sixteenth as wide as the model."""

    name = "pfeiffer"
    paper = "arXiv:2005.00247"
    learning_rate = 3e-3
    targets = ("mlp-output",)
    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "norm", "block"})

    reduction: float | None = 16.0

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if p.site.geometry.kind != "norm":
            return super().forward(p, x, inner, call)
        normed = inner(x).to(x.dtype)  # a norm that is kept in fp32 gives fp32
        return inner(x + self.added(p, normed))

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + self.added(p, y)
