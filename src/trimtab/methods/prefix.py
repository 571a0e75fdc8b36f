"""Prefix tuning: Optimizing Continuous Prompts for Generation. Li and Liang 2021, arXiv:2101.00190;
P-tuning v2, Liu et al. 2022, arXiv:2110.07602.

    attention(q, [K; k], [V; v]),   K, V (heads, n, width) trained at every layer
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Prefix, Values
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Prefix):
    """`length` trained keys and values before those of every self-attention."""

    name = "prefix"
    paper = "arXiv:2101.00190"
    learning_rate = 1e-2

    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"prefix: length must be at least 1, not {self.length}")

    @property
    def positions(self) -> int:
        return self.length

    def init(self, site: Site) -> dict[str, Param]:
        heads, width = site.geometry.shape
        return {
            "K": Param(torch.randn(heads, self.length, width)),
            "V": Param(torch.randn(heads, self.length, width)),
        }

    def kv(self, p: Values, call: Call) -> tuple[Tensor, Tensor]:
        return p.K, p.V
