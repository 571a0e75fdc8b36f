"""VB-LoRA: extreme parameter-efficient fine-tuning with vector banks. Li, Han and Ji 2024,
arXiv:2405.15179.

    W' = W + B A,   each piece of b numbers of A's rows and B's columns:  Σ softmax(σ)ₖ vₖ

The vectors v (h, b) are shared by all sites; σ (h,) are logits of one piece, of which the largest
`topk` count. Where b does not divide a width, its last piece is cut.

Use it where very many adapters are to be kept: once trained, a file holds a small bank and a few
indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site
from trimtab.methods._peft_vblora import VBLORA_NAMES


@dataclass(frozen=True, kw_only=True)
class VBLoRA(Additive):
    """A low-rank update whose factors are mixtures of vectors from a shared bank."""

    name = "vb-lora"
    paper = "arXiv:2405.15179"
    learning_rate = 3e-3
    starts_at_base: ClassVar[str | None] = "its factors are mixtures of vectors that are not zero"
    hf: ClassVar[Names | None] = VBLORA_NAMES

    rank: int = option(4, "r, the rows of A and the columns of B")
    num_vectors: int = option(256, "h, vectors in the bank")
    vector_length: int = option(256, "b, numbers in each vector")
    topk: int = option(2, "k, vectors that are mixed into each piece, at most h")
    bank_bound: float = option(0.02, "the bank starts uniform within ± this")
    logits_std: float = option(0.1, "standard deviation of the logits σ at the start")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("rank", "num_vectors", "vector_length"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        most = self.num_vectors
        self.require("topk", 1 <= self.topk <= most, f"lie in [1, {most}], the number of vectors")
        self.require("bank_bound", self.bank_bound > 0, "be above 0, or no gradient arrives")
        self.require("logits_std", self.logits_std >= 0, "be at least 0")

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        bank = torch.empty(self.num_vectors, self.vector_length)
        return {"bank": Param(nn.init.uniform_(bank, -self.bank_bound, self.bank_bound))}

    def init(self, site: Site) -> dict[str, Param]:
        r, h = self.rank, self.num_vectors
        inner, outer = (
            math.ceil(width / self.vector_length) for width in (site.in_features, site.out_features)
        )
        shapes = {"A": (r, inner, h), "B": (outer, r, h)}
        return {name: Param(self.logits_std * torch.randn(shape)) for name, shape in shapes.items()}

    def _mixed(self, bank: Tensor, logits: Tensor) -> Tensor:
        """(…, h) -> (…, b)"""
        most, which = logits.topk(self.topk, dim=-1)
        return (most.softmax(-1)[..., None] * bank[which]).sum(-2)

    def _factors(self, p: Values) -> tuple[Tensor, Tensor]:
        A = self._mixed(p.bank, p.A).flatten(-2)
        B = self._mixed(p.bank, p.B).mT.flatten(0, 1)
        return A[:, : p.site.in_features], B[: p.site.out_features]

    def delta(self, p: Values) -> Tensor:
        A, B = self._factors(p)
        return B @ A

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A, B = self._factors(p)
        return linear(linear(x, A), B)
