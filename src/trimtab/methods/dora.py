"""DoRA: Weight-Decomposed Low-Rank Adaptation. Liu et al. 2024, arXiv:2402.09353.

    W' = m ∘ (W + s B A) / ‖W + s B A‖,   A (r, in), B (out, r), m (out,),   norms of rows

LoRA turns the rows of W, m sets their lengths. m starts at the norms of W and B at zero, so that
the adapted model starts at the base. The norm is a constant to the backward pass (section 4.3).

Use it where `lora` of low rank falls short of full fine-tuning. A step takes longer than LoRA's,
and both merge alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.lowrank import LowRank
from trimtab.core.method import InputDropout, Names, Param, Transform, Values
from trimtab.core.operator import Operator, Patches, dropout, linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class DoRA(LowRank, InputDropout, Transform):
    """A low-rank change of direction, as `LoRA`'s, and a trained length of every row."""

    name = "dora"
    paper = "arXiv:2402.09353"
    kinds = frozenset({"linear", "embedding", "conv"})
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="LORA",
        tensors={"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"},
        fields={
            "rank": "r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "rslora": "use_rslora",
        },
        transposed=True,
        biases="lora_only",
        tokens=True,
        channels=("m",),
        at={
            "embedding": {
                "A": "lora_embedding_A",
                "B": "lora_embedding_B",
                "m": "lora_magnitude_vector",
            },
            "conv": {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"},
        },
        patches="A",
        flags={"use_dora": True},
        starts=("pissa", "olora"),
    )

    def init(self, site: Site) -> dict[str, Param]:
        W = site.matrix
        m = torch.linalg.vector_norm(W, dim=1, dtype=torch.promote_types(W.dtype, torch.float32))
        return {**super().init(site), "m": Param(m, exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        V = W + (self.scale * self.product(p)).to(W.dtype)
        norm = torch.linalg.vector_norm(V.detach(), dim=1)
        return (p.m / norm.clamp_min(_TINY)).to(V.dtype)[:, None] * V, b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        own = inner.tensors()
        y, b, gain = inner(x), own.get("bias"), inner.geometry.gain
        A, B = self.factors(p, x.dtype)
        ratio = p.m / self._norm(p, A, B, inner.geometry.read(own["weight"]))
        side = dropout(x, self.dropout, p.training)
        if isinstance(x, Patches) and x.module.groups > 1:
            added = linear(side, B @ A)
        else:
            added = linear(linear(side, A), B)
        turned = (y if b is None else y - b) + gain * self.scale * added
        return (ratio * turned if b is None else ratio * turned + b).to(y.dtype)

    @torch.no_grad()
    def _norm(self, p: Values, A: Tensor, B: Tensor, W: Tensor) -> Tensor:
        """‖W + s B A‖ by rows, without the sum: ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B A Aᵀ, B⟩."""
        s = self.scale
        square = torch.linalg.vector_norm(W, dim=1, dtype=p.m.dtype).square()
        cross = ((W.to(A.dtype) @ A.mT) * B).sum(1, dtype=p.m.dtype)
        low = ((B @ (A @ A.mT)) * B).sum(1, dtype=p.m.dtype)
        return (square + 2 * s * cross + s * s * low).clamp_min(_TINY**2).sqrt()


_TINY = 1e-12  # a row of zeros stays one
