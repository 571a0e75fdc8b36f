"""FISH mask: Training Neural Networks with Fixed Sparse Masks. Sung, Nair and Raffel 2021,
arXiv:2111.09839.

    W' = W + S,   S zero but for trained values where F is largest over all sites together

    F = 1/N Σ_n (∂ log p(y_n | x_n) / ∂W)²,   the empirical Fisher information's diagonal

`trimtab.init.fisher(model, batches)` computes F and chooses, after attaching and before training:
an optimizer then holds the chosen values alone, where a mask found while training would need every
number's gradient and state until then. The values start at zero.

Use it where a sparse change is wanted and the data should say which weights matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.options import option
from trimtab.core.site import Site
from trimtab.core.sparse import Sparse, drawn


@dataclass(frozen=True, kw_only=True)
class Fish(Sparse):
    """Trained values at the weights that the loss depends on most."""

    name = "fish"
    paper = "arXiv:2111.09839"
    learning_rate = 1e-3

    density: float = option(0.005, "share of the weights, over all sites, that trains, in (0, 1]")
    mask: str = option(
        "fisher", '"fisher", places that data choose; "random", the paper\'s control'
    )
    count: int | None = option(None, "values at a site, once data chose; None: by `density`")
    seed: int = option(0, "seed of random places")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("density", 0 < self.density <= 1, "lie in (0, 1]")
        self.require("count", self.count is None or self.count >= 0, "be at least 0")
        self.require("seed", self.seed >= 0, "be at least 0")
        self.require("mask", self.mask in ("fisher", "random"), "be one of fisher, random")
        self.require_use("seed", self.mask == "random", 'with mask="random"')

    def accepts(self, site: Site) -> str | None:
        if (reason := super().accepts(site)) is not None:
            return reason
        if site.geometry.count:
            return "each of several matrices would have another number of values"
        size = site.out_features * site.in_features
        return f"it has {size} weights, and not {self.count}" if (self.count or 0) > size else None

    def unused(self, sites: Sequence[Site]) -> str | None:
        if self.count is None:
            return super().unused(sites)
        return "count is what trimtab.init.fisher(model, batches) has chosen: leave it out"

    def unready(self) -> str | None:
        if self.count is not None or self.mask == "random":
            return None
        return (
            "its places are random: call trimtab.init.fisher(model, batches), which chooses them "
            'from data, before training and before the optimizer is made; or say mask="random"'
        )

    def readied(self) -> Fish:
        return self if self.count is not None else replace(self, mask="random")

    def places(self, site: Site) -> Tensor:
        share = max(1, round(self.density * site.out_features * site.in_features))
        return drawn(share if self.count is None else self.count, site, self.seed).sort().values

    def allotted(self, sizes: list[int]) -> int | None:
        if self.count is not None:
            raise InputError("fish: its places are chosen already: attach it anew for others")
        return round(self.density * sum(sizes))

    def placed(self, count: int) -> Fish:
        return replace(self, mask="fisher", seed=0, count=count)
