"""HRA: Householder Reflection Adaptation. Yuan, Liu and Xu 2024, arXiv:2405.17484.

    W' = W H_1 … H_r,   H_i = I - 2 u_i u_iᵀ / ‖u_i‖²,   U = (u_1, …, u_r) (in, r)

A chain of reflections is an orthogonal map and a change of rank r at once. The u start in equal
pairs, whose reflections cancel, so that the adapted model starts at the base; the determinant of an
odd number of reflections is -1, which is no identity's. The chain is evaluated as I - P Qᵀ, with P
and Q (in, r). An embedding's output is reflected.

Use it where an orthogonal change of low rank is wanted: it costs as few numbers as LoRA and keeps
the angles between neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.draw import kaiming
from trimtab.core.method import Names, Param, Transform, Values, option
from trimtab.core.operator import Operator, Patches
from trimtab.core.rotation import reflection, reflections, width
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class HRA(Transform):
    """A chain of reflections, whose directions may be drawn to be orthogonal."""

    name = "hra"
    paper = "arXiv:2405.17484"
    learning_rate = 3e-3
    kinds = frozenset({"linear", "embedding", "conv"})
    hf: ClassVar[Names | None] = Names(
        peft_type="HRA",
        tensors={"U": "hra_u"},
        fields={"rank": "r", "gram_schmidt": "apply_GS"},
        biases="hra_only",
        at={"conv": {"U": "hra_u"}},
        patterns=(),
    )

    rank: int = option(8, "r, reflections in the chain; even, so that it starts at the base")
    orthogonality: float = option(
        0.0, "λ, weight of the penalty ‖UᵀU - I‖² on directions of length one"
    )
    gram_schmidt: bool = option(
        False, "make the directions orthogonal (λ = ∞): it does not start at the base"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("orthogonality", self.orthogonality >= 0, "be at least 0")
        self.require_use("orthogonality", self.rank > 1, "between several reflections")
        free = not (self.gram_schmidt and self.orthogonality)
        self.require("orthogonality", free, "be 0 with gram_schmidt, which is exact")

    @property
    def starts_at_base(self) -> str | None:  # type: ignore[override]
        if self.gram_schmidt:
            return "reflections along orthogonal directions never cancel"
        return "an odd number of reflections is no identity" if self.rank % 2 else None

    def accepts(self, site: Site) -> str | None:
        narrow = f"it has fewer than {self.rank} features, and no so many orthogonal directions"
        short = self.gram_schmidt and width(site) < self.rank
        return super().accepts(site) or (narrow if short else None)

    def init(self, site: Site) -> dict[str, Param]:
        paired = self.starts_at_base is None
        U = kaiming(width(site), self.rank // 2 if paired else self.rank)
        return {"U": Param(U.repeat_interleave(2, dim=1) if paired else U, exact=True)}

    def _factors(self, p: Values, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        P, Q = reflection(p.U) if self.gram_schmidt else reflections(p.U)
        return P.to(dtype), Q.to(dtype)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        P, Q = self._factors(p, W.dtype)
        if p.site.geometry.kind == "embedding":
            return W - P @ (Q.mT @ W), b
        return W - (W @ P) @ Q.mT, b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if isinstance(x, Patches):
            return super().forward(p, x, inner, call)
        if p.site.geometry.kind == "embedding":
            y = inner(x)
            P, Q = self._factors(p, y.dtype)
            return y - (y @ Q) @ P.mT
        P, Q = self._factors(p, x.dtype)
        return inner(x - (x @ Q) @ P.mT)

    def penalty(self, p: Values) -> Tensor | None:
        if not self.orthogonality:
            return None
        U = p.U / torch.linalg.vector_norm(p.U, dim=-2, keepdim=True)
        one = torch.eye(self.rank, dtype=U.dtype, device=U.device)
        return self.orthogonality * (U.mT @ U - one).square().sum()
