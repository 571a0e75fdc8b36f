"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning. Qiu et al. 2023,
arXiv:2306.07280; Cayley-Neumann form, Qiu et al. 2025, arXiv:2506.19847.

    W' = W Rᵀ,   R = blocks on the diagonal,   R_i = (I - S_i)(I + S_i)⁻¹,   S_i = -S_iᵀ

The input is rotated (an embedding's output, W' = Rᵀ W), which keeps the angles between neurons. S
starts at zero, so that the adapted model starts at the base.

Use it where the angles between the base's neurons should stay as they are: image generation, and
tasks near to what the base can do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Dropout, Names, Param, Transform, Values, option
from trimtab.core.operator import Operator, Patches
from trimtab.core.rotation import cayley, cayley_neumann, skew, turned, width
from trimtab.core.site import Site
from trimtab.methods._peft_oft import OFT_NAMES


@dataclass(frozen=True, kw_only=True)
class OFT(Dropout, Transform):
    """Rotations of the input in blocks of features."""

    name = "oft"
    paper = "arXiv:2306.07280"
    kinds = frozenset({"linear", "embedding", "conv"})
    hf: ClassVar[Names | None] = OFT_NAMES

    block: int = option(32, "b, features in a block; the nearest divisor of the width is taken")
    blocks: int = option(0, "blocks in the place of their size; 0: `block` counts")
    share: bool = option(False, "one rotation for all blocks")
    neumann: int = option(
        0, "terms of a series in the place of the inverse, which turns the other way; 0: exact"
    )
    eps: float = option(0.0, "ε, bound of each block's change, ‖S_i‖ ≤ ε / √blocks (COFT); 0: none")
    dropout: float = option(0.0, "chance of a block to be left out in training, in [0, 1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("block", self.block >= 2, "be at least 2")
        for field in ("blocks", "eps"):
            self.require(field, getattr(self, field) >= 0, "be at least 0")
        self.require("neumann", self.neumann == 0 or self.neumann >= 2, "be 0 or at least 2")
        self.require_use("block", not self.blocks, f"with blocks=0, and that is {self.blocks}")

    def accepts(self, site: Site) -> str | None:
        narrow = "it has one feature, and nothing to rotate"
        return super().accepts(site) or (narrow if width(site) < 2 else None)

    def ignored(self, site: Site) -> str | None:
        return "dropout" if self.dropout and site.geometry.count else None

    def block_size(self, site: Site) -> int:
        n = width(site)
        divisors = [d for d in range(2, n + 1) if n % d == 0]
        if self.blocks:
            return min((abs(n // d - self.blocks), -d, d) for d in divisors)[-1]
        return min((abs(d - self.block), d) for d in divisors)[-1]

    def init(self, site: Site) -> dict[str, Param]:
        b = self.block_size(site)
        shape = (1 if self.share else width(site) // b, b * (b - 1) // 2)
        return {"S": Param(torch.zeros(shape), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        D, at_output = self._turn(p).to(W.dtype), p.site.geometry.kind == "embedding"
        return turned(W.mT, D).mT if at_output else turned(W, D.mT), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if isinstance(x, Patches):
            return super().forward(p, x, inner, call)
        if p.site.geometry.kind == "embedding":
            return turned(y := inner(x), self._turn(p).to(y.dtype))
        return inner(turned(x, self._turn(p).to(x.dtype)))

    def _turn(self, p: Values) -> Tensor:
        """R - I, (blocks, b, b): what is small is kept apart from the one that would hide it."""
        S = skew(self._bounded(p.S))
        D = cayley_neumann(S, self.neumann) if self.neumann else cayley(S)
        if not (self.dropout and p.training):
            return D
        out = torch.rand(width(p.site) // D.shape[-1], 1, 1, device=D.device) < self.dropout
        return torch.where(out, 0, D)

    def _bounded(self, S: Tensor) -> Tensor:
        """COFT: each block within its ball; the gradient is that of the point on it."""
        bound = self.eps / math.sqrt(2 * S.shape[-2]) or math.inf
        excess = torch.linalg.vector_norm(S.detach(), dim=-1, keepdim=True) / bound
        return S.detach() / excess.clamp_min(1) + (S - S.detach())

    def after_backward(self, sites: Mapping[str, Values], step: int, total: int) -> None:
        for p in sites.values():
            p.S.copy_(self._bounded(p.S))
