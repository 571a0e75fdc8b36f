"""The adapter of AdapterFusion and MAD-X. Pfeiffer et al. 2021, arXiv:2005.00247.

    h' = h + s (U σ(D h + d) + u),   after feed-forward only

Half of Houlsby's bottlenecks, at the sublayer that matters more.

Use it where bottlenecks are to be stacked or fused, and for the adapters that AdapterHub publishes:
half of Houlsby's parameters and latency.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.method import Values


@dataclass(frozen=True, kw_only=True)
class Pfeiffer(Bottleneck):
    """A bottleneck after each feed-forward sublayer, a sixteenth as wide as the model."""

    name = "pfeiffer"
    paper = "arXiv:2005.00247"
    targets = ("mlp-output",)

    reduction: float | None = 16

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + self.added(p, y)
