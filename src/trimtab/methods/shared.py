"""Uni-LoRA: one vector is all you need. Li et al. 2025, arXiv:2506.00799.

    W' = W + B A,   A = (θ ∘ ν)[i], B = (θ ∘ ν)[k],   νⱼ = 1 / √(how often index j is used)

θ (length,) is all that trains, at all sites together: every number of every factor is one of
its, by an index that is drawn at random. With ν the map from θ to the factors is an isometry. The
indices are as evenly spread as can be; with `hashed` each is drawn by itself, as the hashing trick
does (Chen et al. 2015, arXiv:1504.04788). They follow from `seed` and the sites, and are saved all
the same, in the fewest bytes: no version of numpy promises the draws of another.

Use it where an adapter must have so many numbers and no more, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site
from trimtab.methods._peft_unilora import UNILORA_NAMES, narrow


@dataclass(frozen=True, kw_only=True)
class Shared(Additive):
    """Low-rank updates whose numbers are all taken from one short vector."""

    name = "shared"
    paper = "arXiv:2506.00799"
    learning_rate = 5e-3
    starts_at_base: ClassVar[str | None] = "its factors are made of one vector that is not zero"
    hf: ClassVar[Names | None] = UNILORA_NAMES

    rank: int = option(4, "r, the rows of A and the columns of B")
    length: int = option(256, "d, numbers that train, of all sites together")
    hashed: bool = option(
        False, "draw each index by itself, where otherwise all are used as evenly as can be"
    )
    bound: float = option(0.02, "θ starts uniform within ± this")
    seed: int = option(42, "seed of the indices")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("rank", "length"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        self.require("bound", self.bound > 0, "be above 0, or no gradient arrives")
        self.require("seed", self.seed >= 0, "be at least 0")

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        theta = nn.init.uniform_(torch.empty(self.length), -self.bound, self.bound)
        if theta.is_meta:  # asked for shapes alone
            return {"theta": Param(theta), "norm": Param(torch.empty_like(theta), trained=False)}
        counts = torch.from_numpy(np.bincount(self._indices(sites), minlength=self.length))
        norm = torch.where(counts > 0, counts.float().rsqrt(), 0.0)
        return {"theta": Param(theta), "norm": Param(norm, trained=False)}

    def allot(self, sites: Sequence[Site]) -> Sequence[dict[str, Param]]:
        shapes = [shape for site in sites for shape in self._shapes(site)]
        if torch.empty(0).is_meta:
            drawn = [torch.empty(shape, dtype=narrow(self.length)) for shape in shapes]
        else:
            every = torch.from_numpy(self._indices(sites)).to(narrow(self.length))
            sizes = [int(np.prod(shape)) for shape in shapes]
            parts = zip(every.split(sizes), shapes, strict=True)
            drawn = [part.reshape(shape).clone() for part, shape in parts]
        fixed = [Param(one, trained=False) for one in drawn]
        return [{"A": a, "B": b} for a, b in zip(fixed[::2], fixed[1::2], strict=True)]

    def _shapes(self, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        experts = (site.geometry.count,) if site.geometry.count else ()
        A, B = (self.rank, site.in_features), (site.out_features, self.rank)
        return (*experts, *A), (*experts, *B)

    def _indices(self, sites: Sequence[Site]) -> np.ndarray:
        """Of all numbers of all factors, one after the other."""
        total = sum(int(np.prod(shape)) for site in sites for shape in self._shapes(site))
        generator = np.random.default_rng(self.seed)
        if self.hashed:
            return generator.integers(self.length, size=total)
        each, left = divmod(total, self.length)
        drawn = np.repeat(np.arange(self.length), each)
        if left:
            more = generator.choice(self.length, size=left, replace=False)
            drawn = np.concatenate([drawn, more])
        generator.shuffle(drawn)
        return drawn

    def init(self, site: Site) -> dict[str, Param]:
        return {}

    def misfit(self, p: Values) -> str | None:
        most = max(int(p.A.max()), int(p.B.max()))
        least = min(int(p.A.min()), int(p.B.min()))
        fits = least >= 0 and most < self.length
        return None if fits else f"indices lie beyond a vector of {self.length}"

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        vector = p.theta * p.norm
        return vector[p.A.int()], vector[p.B.int()]

    def delta(self, p: Values) -> Tensor:
        A, B = self._factors(p)
        return B @ A

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A, B = self._factors(p)
        return linear(linear(x, A), B)
