"""VeRA: Vector-based Random Matrix Adaptation. Kopiczko, Blankevoort and Asano 2024,
arXiv:2310.11454.

    W' = W + diag(b) B diag(d) A,   A (r, in), B (out, r)

A and B are random, frozen, and shared by all sites: each takes the corner of them that fits. Only
the vectors train: b (out,) from zero, d (r,) from `d_initial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.method import Additive, Names, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class VeRA(Additive):
    """Two trained vectors a site around random matrices that all sites share."""

    name = "vera"
    paper = "arXiv:2310.11454"
    learning_rate = 1e-2
    hf: ClassVar[Names | None] = Names(
        peft_type="VERA",
        tensors={"b": "vera_lambda_b", "d": "vera_lambda_d"},
        fields={"rank": "r", "dropout": "vera_dropout", "d_initial": "d_initial"},
    )

    rank: int = 256
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"vera: rank must be at least 1, not {self.rank}")

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        inner = max(site.in_features for site in sites)
        outer = max(site.out_features for site in sites)
        A, B = torch.empty(self.rank, inner), torch.empty(outer, self.rank)
        return {
            "A": Param(nn.init.kaiming_uniform_(A), trained=False),
            "B": Param(nn.init.kaiming_uniform_(B), trained=False),
        }

    def init(self, site: Site) -> dict[str, Param]:
        return {
            "b": Param(torch.zeros(site.out_features)),
            "d": Param(torch.full((self.rank,), self.d_initial)),
        }

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        """diag(d) A and diag(b) B, the corners that fit the site."""
        A, B = p.A[:, : p.site.in_features], p.B[: p.site.out_features]
        return p.d[:, None] * A, p.b[:, None] * B

    def delta(self, p: Values) -> Tensor:
        dA, bB = self._factors(p)
        return bB @ dA

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        dA, bB = self._factors(p)
        return linear(linear(x, dA), bB)
