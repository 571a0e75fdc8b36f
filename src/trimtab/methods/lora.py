"""LoRA: Low-Rank Adaptation of Large Language Models. Hu et al. 2021, arXiv:2106.09685.

    W' = W + (alpha / r) B A,   A (r, in), B (out, r)

B starts at zero, so that the adapted model starts at the base. With `rslora` the scale is
alpha / √r, which keeps the update's size as the rank grows (Kalajdzievski 2023, arXiv:2312.03732).
Other ranks at some sites are a plan: `{"query": LoRA(rank=16), "all-linear": LoRA(rank=8)}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.method import Additive, Names, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class LoRA(Additive):
    """A low-rank update of the matrix. `alpha` / `rank` scales it; `dropout` acts on its input."""

    name = "lora"
    paper = "arXiv:2106.09685"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="LORA",
        tensors={"A": "lora_A.weight", "B": "lora_B.weight"},
        fields={
            "rank": "r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "rslora": "use_rslora",
        },
        transposed=True,
        shift="lora_B.bias",
        biases="lora_only",
        tokens=True,
        at={
            "embedding": {"A": "lora_embedding_A", "B": "lora_embedding_B"},
            "conv": {"A": "lora_A.weight", "B": "lora_B.weight"},
        },
        patches="A",
    )

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

    def delta(self, p: Values) -> Tensor:
        return self.scale * (p.B @ p.A)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return self.scale * linear(linear(x, p.A), p.B)
