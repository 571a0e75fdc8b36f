"""Compacter: Efficient Low-Rank Hypercomplex Adapter Layers. Mahabadi, Henderson and Ruder 2021,
arXiv:2106.04647.

    h' = h + U σ(D h + d) + u,   D = Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ),   U likewise,   i = 1 … n

The slow weights Aᵢ (n, n) are shared by all sites, by D and by U; the fast ones are of low rank and
each site's own. Compacter++ leaves out the bottleneck after attention. U's t starts at zero. The
paper's PHM-adapter shares no slow weights, and has whole matrices for fast ones.

Use it where adapters after the sublayers should be several times smaller than `houlsby`'s. Nothing
can be merged: the layers stay at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.core.bottleneck import Bottleneck, kronecker_sum
from trimtab.core.call import Call
from trimtab.core.method import Param, Values, option
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Compacter(Bottleneck):
    """Bottlenecks whose maps are sums of Kronecker products."""

    name = "compacter"
    paper = "arXiv:2106.04647"
    learning_rate = 9e-3

    width: int = 24
    activation: str = "gelu"
    n: int = option(
        4, "n, Kronecker products in the sum; must divide the site's width and the bottleneck's"
    )
    rank: int = option(1, "rank of the fast weights sᵢ tᵢᵀ; 0: whole matrices")
    shared_slow: bool = option(
        True, "one set of slow weights Aᵢ for all sites; False: each map has its own"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("n", self.n >= 1, "be at least 1")
        self.require("rank", self.rank >= 0, "not be negative")
        self.require("init_std", self.init_std == 0, "be 0, since it starts at the base exactly")

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is None and (site.out_features % self.n or self.m(site) % self.n):
            reason = (
                f"its widths {site.out_features} and {self.m(site)} must be multiples of n={self.n}"
            )
        return reason

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        return {"A": Param(self._slow())} if self.shared_slow else {}

    def _slow(self) -> Tensor:
        return 0.1 * torch.randn(self.n, self.n, self.n)

    def init(self, site: Site) -> dict[str, Param]:
        n, m, d = self.n, self.m(site) // self.n, site.out_features // self.n
        params = {} if self.shared_slow else {"DA": self._slow(), "UA": self._slow()}
        if self.rank:
            params["Ds"] = nn.init.xavier_normal_(torch.empty(n, m, self.rank))
            params["Dt"] = nn.init.xavier_normal_(torch.empty(n, d, self.rank))
            params["Us"] = nn.init.xavier_normal_(torch.empty(n, d, self.rank))
            params["Ut"] = torch.zeros(n, m, self.rank)
        else:
            params["DB"] = nn.init.xavier_normal_(torch.empty(n, m, d))
            params["UB"] = torch.zeros(n, d, m)
        params |= {"d": torch.zeros(n * m), "u": torch.zeros(n * d)}
        return {name: Param(value) for name, value in params.items()}

    def maps(self, p: Values) -> tuple[Tensor, Tensor]:
        return self._map(p, "D"), self._map(p, "U")

    def _map(self, p: Values, name: str) -> Tensor:
        slow = p.tensors["A" if self.shared_slow else f"{name}A"]
        if not self.rank:
            return kronecker_sum(slow, p.tensors[f"{name}B"])
        return kronecker_sum(slow, p.tensors[f"{name}s"] @ p.tensors[f"{name}t"].mT)

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + self.added(p, y)


@dataclass(frozen=True, kw_only=True)
class CompacterPlus(Compacter):
    """Compacter after the feed-forward sublayers only: half the parameters."""

    name = "compacter++"
    learning_rate = 2.7e-2
    targets = ("mlp-output",)
