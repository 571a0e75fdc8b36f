"""RandLoRA: full-rank parameter-efficient fine-tuning. Albert et al. 2025, arXiv:2502.00987.

    W' = W + (alpha / r) Σⱼ Bⱼ diag(λⱼ) A diag(γⱼ),   A (r, in), Bⱼ (out, r),   j = 1 … ⌈in / r⌉

A and the Bⱼ are random, frozen, and shared by all sites; where out < in the sum acts the other way
round, so that A is along the smaller side. Only λ (r, n), from zero, and γ (n, smaller side) train.
The n products reach full rank. The draws follow from `seed` and the largest sizes alone, so that a
file may leave A and B out.

Use it where low rank is what holds LoRA back: full rank at LoRA's number of parameters, at the
price of slower steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Fields, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """There, of the two `very_sparse` counts."""
    return {"sparse": config.get("sparse", False) and not config.get("very_sparse", False)}


@dataclass(frozen=True, kw_only=True)
class RandLoRA(Additive):
    """A sum of scaled random matrices of low rank, as many as make full rank."""

    name = "randlora"
    paper = "arXiv:2502.00987"
    learning_rate = 3.33e-4
    hf: ClassVar[Names | None] = Names(
        peft_type="RANDLORA",
        tensors={"scale": "randlora_lambda", "gain": "randlora_gamma"},
        fields={
            "rank": "r",
            "alpha": "randlora_alpha",
            "dropout": "randlora_dropout",
            "very_sparse": "very_sparse",
            "seed": "projection_prng_key",
        },
        transposed=True,
        biases="randlora_only",
        patterns=(),
        common={"A": "randlora_A", "B": "randlora_B"},
        repeated=True,
        drawn=("A", "B"),
        saved="save_projection",
        more=Fields(("sparse",), _read, lambda method: {"sparse": method.sparse}),
    )

    rank: int = option(
        32, "r of each random matrix: the lower, the more of them and the more is trained"
    )
    alpha: float = option(640.0, "numerator of the scale alpha / r")
    sparse: bool = option(False, "random numbers are -1, 0 or 1, of which two thirds are 0")
    very_sparse: bool = option(False, "as `sparse`, with all but 1 / √(smaller side) of them 0")
    seed: int = option(0, "seed of the random matrices A and Bⱼ")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("seed", self.seed >= 0, "be at least 0")
        self.require_use("sparse", not self.very_sparse, "without very_sparse, which is sparser")

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        sides = [max(s.in_features for s in sites), max(s.out_features for s in sites)]
        short, long, r = min(sides), max(sides), self.rank
        n = math.ceil(short / r)
        if self.sparse or self.very_sparse:
            rare = math.sqrt(short) if self.very_sparse else 3.0

            def signs(*shape: int) -> Tensor:
                drawn = torch.rand(shape, generator=generator, device="cpu")
                return (drawn > 1 - 1 / (2 * rare)).float() - (drawn < 1 / (2 * rare)).float()

            A, B = signs(r, 1, short), signs(long, n, r)
        else:
            # HF PEFT draws in bf16, whatever the model's precision.
            one = functools.partial(kaiming, dtype=torch.bfloat16, generator=generator)
            A, B = one(r, 1, short), torch.cat([one(long, 1, r) for _ in range(n)], dim=1)
        fixed = {"A": A / A.std(), "B": B / B.std()}
        return {name: Param(value.float(), trained=False) for name, value in fixed.items()}

    def init(self, site: Site) -> dict[str, Param]:
        short = min(site.in_features, site.out_features)
        n = math.ceil(short / self.rank)
        return {
            "scale": Param(torch.zeros(self.rank, n)),
            "gain": Param(torch.full((n, short), 1 / max(n, short))),
        }

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        """What reads the input, and what gives the output: A along the smaller side."""
        n, short = p.gain.shape
        A = (p.scale[:, :, None] * p.A[:, :, :short] * p.gain).flatten(0, 1)
        B = p.B[: max(p.site.in_features, p.site.out_features), :n].flatten(1)
        return (A, B) if short == p.site.in_features else (B.mT, A.mT)

    def delta(self, p: Values) -> Tensor:
        first, second = self._factors(p)
        return self.alpha / self.rank * (second @ first)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        first, second = self._factors(p)
        return self.alpha / self.rank * linear(linear(x, first), second)
