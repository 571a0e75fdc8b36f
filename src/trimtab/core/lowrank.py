"""The product of low rank that several methods share: its hyper-parameters, factors and scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from trimtab.core.method import Method, Param
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """scale B A, with A (rank, in) and B (out, rank), which starts at zero."""

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def init(self, site: Site) -> dict[str, Param]:
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_features), a=math.sqrt(5))
        return {"A": Param(A), "B": Param(torch.zeros(site.out_features, self.rank))}
