"""VeRA: Vector-based Random Matrix Adaptation. Kopiczko, Blankevoort and Asano 2024,
arXiv:2310.11454.

    W' = W + diag(b) B diag(d) A,   A (r, in), B (out, r)

A and B are random, frozen, and shared by all sites: each takes the corner of them that fits. Only
the vectors train: b (out,) from zero, d (r,) from `d_initial`. The draws follow from `seed` and the
largest sizes alone, so that a file may leave A and B out.

Use it where thousands of adapters are kept: a site costs two vectors, and the matrices follow from
a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class VeRA(Additive):
    """Two trained vectors a site around random matrices, the same at all sites."""

    name = "vera"
    paper = "arXiv:2310.11454"
    learning_rate = 3e-2
    hf: ClassVar[Names | None] = Names(
        peft_type="VERA",
        tensors={"b": "vera_lambda_b", "d": "vera_lambda_d"},
        fields={
            "rank": "r",
            "dropout": "vera_dropout",
            "d_initial": "d_initial",
            "seed": "projection_prng_key",
        },
        transposed=True,
        biases="vera_only",
        patterns=(),
        common={"A": "vera_A", "B": "vera_B"},
        drawn=("A", "B"),
        saved="save_projection",
    )

    rank: int = option(256, "r, rows of the random A and columns of the random B")
    d_initial: float = option(0.1, "value of each number of d at the start")
    seed: int = option(0, "seed of the random matrices A and B")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("seed", self.seed >= 0, "be at least 0")

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def random(*shape: int) -> Param:
            drawn = nn.init.kaiming_uniform_(torch.empty(shape, device="cpu"), generator=generator)
            return Param(drawn, trained=False)

        inner = max(site.in_features for site in sites)
        outer = max(site.out_features for site in sites)
        return {"A": random(self.rank, inner), "B": random(outer, self.rank)}

    def init(self, site: Site) -> dict[str, Param]:
        return {
            "b": Param(torch.zeros(site.out_features)),
            "d": Param(torch.full((self.rank,), float(self.d_initial))),
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
