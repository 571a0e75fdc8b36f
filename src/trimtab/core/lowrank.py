"""The product of low rank that several methods share: its hyper-parameters, factors and scale.

How its factors train is a choice of its own: B at `lr_ratio` times the learning rate (LoRA+, Hayou
2024, arXiv:2402.12354), or B alone (LoRA-FA, Zhang 2023, arXiv:2308.03303).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from trimtab.core.method import Method, Param
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """scale B A, with A (rank, in) and B (out, rank), which starts at zero.

    `lr_ratio` is B's learning rate over A's, for an optimizer that is given
    `trimtab.parameters(model, lr=…)`; with `freeze_a` A stays as it was drawn."""

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    lr_ratio: float = 1.0
    freeze_a: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("lr_ratio", self.lr_ratio > 0, "be above 0")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def init(self, site: Site) -> dict[str, Param]:
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_features), a=math.sqrt(5))
        B = torch.zeros(site.out_features, self.rank)
        return {"A": Param(A, trained=not self.freeze_a), "B": Param(B, rate=self.lr_ratio)}
