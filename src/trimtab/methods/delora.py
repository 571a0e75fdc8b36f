"""DeLoRA: decoupling angles and strength in low-rank adaptation. Bini, Girrbach and Akata 2025,
arXiv:2503.18225.

    W' = W + (λ / r) B diag(1 / ‖aᵢ‖‖bᵢ‖) A diag(‖wⱼ‖),   A (r, in), B (out, r)

The norms of A's rows and of B's columns do not matter: their directions are learnt, and λ bounds
how far W' goes, relative to the norms of W's columns. B starts at zero, so that the adapted model
starts at the base; norms below 1e-4 count as that. (The paper takes the start off W instead.)

Use it where training is long or the learning rate uncertain: the change cannot grow beyond its
strength.
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
class DeLoRA(Additive):
    """A low-rank update of normalised directions, whose trained bound λ starts at `strength`."""

    name = "delora"
    paper = "arXiv:2503.18225"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="DELORA",
        tensors={
            "A": "delora_A",
            "B": "delora_B",
            "strength": "delora_lambda",
            "norm": "delora_w_norm",
        },
        fields={"rank": "r", "strength": "delora_lambda", "dropout": "module_dropout"},
        biases="delora_only",
        patterns=("rank", "strength"),
        spelled={"strength": "lambda"},
    )

    rank: int = 8
    strength: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")

    def init(self, site: Site) -> dict[str, Param]:
        W = site.matrix
        norm = torch.linalg.vector_norm(W, dim=0, dtype=torch.promote_types(W.dtype, torch.float32))
        A = nn.init.kaiming_uniform_(torch.empty(self.rank, site.in_features), a=math.sqrt(5))
        return {
            "A": Param(A),
            "B": Param(torch.zeros(site.out_features, self.rank)),
            "strength": Param(torch.full((1,), float(self.strength))),
            "norm": Param(norm, trained=False),
        }

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        lengths = p.A.norm(dim=1).clamp_min(1e-4) * p.B.norm(dim=0).clamp_min(1e-4)
        return p.A * p.norm, p.B * (p.strength / self.rank / lengths)

    def delta(self, p: Values) -> Tensor:
        A, B = self._factors(p)
        return B @ A

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A, B = self._factors(p)
        return linear(linear(x, A), B)
