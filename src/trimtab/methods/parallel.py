"""Parallel adapters: Towards a Unified View of Parameter-Efficient Transfer Learning. He et al.
2022, arXiv:2110.04366.

    y' = f(x) + s (U σ(D x + d) + u)

Beside a whole feed-forward sublayer f: the bottleneck reads what the sublayer reads.

Use it where a bottleneck's capacity is wanted beside the feed-forward layers: it learns faster than
one put after them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.method import Values
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Parallel(Bottleneck):
    """A bottleneck beside each feed-forward sublayer, scaled by the paper's 4."""

    name = "parallel"
    paper = "arXiv:2110.04366"
    targets = ("mlp-output",)
    reads_entry = True

    scale: float = 4.0

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is None and site.entry is None:
            reason = "it acts beside a whole sublayer, and this is not the last map of one"
        return reason

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + self.added(p, call.tap(p.site.entry))
