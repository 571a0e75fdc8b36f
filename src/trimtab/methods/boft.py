"""BOFT: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization. Liu et al. 2023,
arXiv:2311.06243.

    W' = diag(s) W Rᵀ,   R = B_m … B_1,   B_i = P_i diag(Q_1, …, Q_n) P_iᵀ
    Q_j = (I - S_j)(I + S_j)⁻¹,   S_j = (R_j - R_jᵀ) / 2

OFT with the dense rotation put together from m sparse factors, as a fast Fourier transform is: the
permutation P_i lets blocks join features that lie 2^i half blocks apart. The input is rotated (an
embedding's output), s scales the output. R starts at zero and s at one, so that the adapted model
starts at the base.

Use it where `oft`'s blocks are too coarse: butterflies mix all dimensions with few numbers, at the
price of more products a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Dropout, Names, Param, Transform, Values, option
from trimtab.core.operator import Operator, Patches, linear
from trimtab.core.rotation import butterfly, cayley, width
from trimtab.core.site import Site
from trimtab.methods._peft_boft import BOFT_NAMES


@dataclass(frozen=True, kw_only=True)
class BOFT(Dropout, Transform):
    """A butterfly of rotations in blocks, and a scale of each output."""

    name = "boft"
    paper = "arXiv:2311.06243"
    learning_rate = 3e-3
    kinds = frozenset({"linear", "embedding", "conv"})
    hf: ClassVar[Names | None] = BOFT_NAMES

    block: int = option(
        4, "b, features in a block: even for more than one factor; must divide the width"
    )
    blocks: int = option(0, "blocks in the place of their size; 0: `block` counts")
    factors: int = option(1, "m, sparse rotations one after another")
    dropout: float = option(0.0, "chance of a block of one factor to be left out in training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("block", self.block >= 2, "be at least 2")
        self.require("blocks", self.blocks >= 0, "be at least 0")
        self.require("factors", self.factors >= 1, "be at least 1")
        self.require_use("block", not self.blocks, f"with blocks=0, and that is {self.blocks}")

    def accepts(self, site: Site) -> str | None:
        if reason := super().accepts(site):
            return reason
        n, b = width(site), self._size(site)
        if b < 2 or n % b or (self.blocks and n != b * self.blocks):
            blocks = f"{self.blocks} blocks" if self.blocks else f"blocks of {self.block}"
            return f"its {n} features do not fall into {blocks}"
        if self.factors > 1 and (b % 2 or n % (b * 2 ** (self.factors - 1))):
            return f"{self.factors} factors do not join its {n // b} blocks of {b} features"
        return None

    def _size(self, site: Site) -> int:
        return width(site) // self.blocks if self.blocks else self.block

    def init(self, site: Site) -> dict[str, Param]:
        b = self._size(site)
        R = torch.zeros(self.factors, width(site) // b, b, b)
        return {"R": Param(R, exact=True), "s": Param(torch.ones(site.out_features), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._changed(p, W, self._turns(p)), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        D = self._dropped(self._turns(p)) if self.dropout and p.training else self._turns(p)
        if isinstance(x, Patches):
            b = inner.bias
            W = self._changed(p, inner.weight, D).to(x.dtype)
            return linear(x, W, None if b is None else b.to(x.dtype))
        if p.site.geometry.kind == "embedding":
            y = inner(x)
            return (butterfly(y, D.to(y.dtype)) * p.s).to(y.dtype)
        y, b = inner(butterfly(x, D.to(x.dtype))), inner.bias
        return (y + (p.s - 1) * (y if b is None else y - b)).to(y.dtype)

    def _turns(self, p: Values) -> Tensor:
        """B_i - I in blocks, (factors, blocks, b, b)."""
        return cayley((p.R - p.R.mT) / 2)

    def _changed(self, p: Values, W: Tensor, D: Tensor) -> Tensor:
        D, at_output = D.to(W.dtype), p.site.geometry.kind == "embedding"
        turned = butterfly(W.mT, D).mT if at_output else butterfly(W, D, back=True)
        return p.s.to(W.dtype)[:, None] * turned

    def _dropped(self, D: Tensor) -> Tensor:
        out = torch.rand(D.shape[1], device=D.device) < self.dropout
        one = torch.arange(len(D), device=D.device) == torch.randint(len(D), (), device=D.device)
        return D.masked_fill((one[:, None] & out)[..., None, None], 0)
