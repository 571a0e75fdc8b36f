"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning. Qiu et al. 2023,
arXiv:2306.07280; Cayley-Neumann form, Qiu et al. 2025, arXiv:2506.19847.

    W' = W Rᵀ,   R = blocks on the diagonal,   R_i = (I - S_i)(I + S_i)⁻¹,   S_i = -S_iᵀ

The input is rotated, block by block; at an embedding it is the output, W' = Rᵀ W. Rotations keep
the angles between neurons. S starts at zero, so that the adapted model starts at the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Fields, Names, Param, Transform, Values
from trimtab.core.operator import Operator, Patches
from trimtab.core.site import Site

_FIELDS = (
    *("r", "oft_block_size", "coft", "eps"),
    *("use_cayley_neumann", "num_cayley_neumann_terms", "peft_version"),
)


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """There, a series of five terms is what is done where nothing is said; before version 0.18
    it was another one.
    """
    terms = config.get("num_cayley_neumann_terms", 5)
    version = str(config.get("peft_version") or "0.0").split(".")
    if config.get("use_cayley_neumann", True) and [int(one) for one in version[:2]] < [0, 18]:
        raise InputError("oft: use_cayley_neumann of a file from before peft_version 0.18")
    blocks = config.get("r", 0)
    return {
        "blocks": blocks,
        "block": 32 if blocks else config.get("oft_block_size", 32),
        "neumann": terms if config.get("use_cayley_neumann", True) else 0,
        "eps": config.get("eps", 6e-5) if config.get("coft") else 0.0,
    }


def _write(method: Any) -> dict[str, Any]:
    return {
        "r": method.blocks,
        "oft_block_size": 0 if method.blocks else method.block,
        "coft": method.eps > 0,
        **({"eps": method.eps} if method.eps > 0 else {}),
        "use_cayley_neumann": method.neumann > 0,
        **(
            {"num_cayley_neumann_terms": method.neumann, "peft_version": "0.18.0"}
            if method.neumann
            else {}
        ),
    }


@dataclass(frozen=True, kw_only=True)
class OFT(Transform):
    """Rotations in blocks of `block` features, or in `blocks` of them where that is given; the
    divisor of the width that is nearest is taken. `share`: one rotation for all blocks.

    `neumann` is the number of terms of the series that stands for the exact inverse (of the
    rotation the other way round), 0 for none. `eps` bounds the size of S (COFT), 0 for no bound.
    `dropout` leaves out that share of the blocks while training.
    """

    name = "oft"
    paper = "arXiv:2306.07280"
    kinds = frozenset({"linear", "embedding", "conv"})
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="OFT",
        tensors={"S": "oft_R.weight"},
        fields={"share": "block_share", "dropout": "module_dropout"},
        biases="oft_only",
        at={"embedding": {"S": "oft_embedding_R.weight"}, "conv": {"S": "oft_R.weight"}},
        patterns=(),
        more=Fields(_FIELDS, _read, _write),
    )

    block: int = 32
    blocks: int = 0
    share: bool = False
    neumann: int = 0
    eps: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("block", self.block >= 2, "be at least 2")
        for field in ("blocks", "eps"):
            self.require(field, getattr(self, field) >= 0, "be at least 0")
        self.require("neumann", self.neumann == 0 or self.neumann >= 2, "be 0 or at least 2")
        self.require("dropout", 0 <= self.dropout < 1, "lie in [0, 1)")

    def accepts(self, site: Site) -> str | None:
        if site.geometry.kind in self.kinds and _width(site) < 2:
            return "it has one feature, and nothing to rotate"
        return super().accepts(site)

    def size(self, site: Site) -> int:
        """The size of a block."""
        width = _width(site)
        divisors = [d for d in range(1, width + 1) if width % d == 0]
        if self.blocks:
            fitting = [d for d in divisors if width // d > 1]
            return width // min(fitting, key=lambda d: (abs(d - self.blocks), d))
        return min(divisors[1:], key=lambda d: (abs(d - self.block), d))

    def init(self, site: Site) -> dict[str, Param]:
        b = self.size(site)
        count = 1 if self.share else _width(site) // b
        return {"S": Param(torch.zeros(count, b * (b - 1) // 2), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        D = self._turn(p).to(W.dtype)
        if p.site.geometry.kind == "embedding":
            return _turned(W.mT, D).mT, b
        return _turned(W, D.mT), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if isinstance(x, Patches):
            return super().forward(p, x, inner, call)
        if not x.is_floating_point():
            y = inner(x)
            return _turned(y, self._turn(p).to(y.dtype))
        return inner(_turned(x, self._turn(p).to(x.dtype)))

    def _turn(self, p: Values) -> Tensor:
        """R - I, (blocks, b, b): what is small is kept apart from the one that would hide it."""
        b = self.size(p.site)
        upper = torch.triu_indices(b, b, 1, device=p.S.device)
        place = torch.zeros(b, b, dtype=torch.long, device=p.S.device)
        place[upper[0], upper[1]] = torch.arange(upper.shape[1], device=p.S.device)
        S = self._bounded(p.S)[:, place].triu(1)
        S = S - S.mT
        eye = torch.eye(b, dtype=S.dtype, device=S.device)
        D = _series(S, self.neumann) if self.neumann else torch.linalg.solve(eye + S, -2 * S)
        if self.dropout and p.training and len(D) > 1:
            out = torch.randperm(len(D), device=D.device) < int(self.dropout * len(D))
            D = D.masked_fill(out[:, None, None], 0)
        return D

    def _bounded(self, S: Tensor) -> Tensor:
        """COFT: each block within its ball; the gradient is that of the point on it."""
        if not self.eps:
            return S
        norm = math.sqrt(2) * torch.linalg.vector_norm(S.detach(), dim=1, keepdim=True)
        bound = self.eps / math.sqrt(len(S))
        within = S.detach() * (bound / norm.clamp_min(bound))
        return within + (S - S.detach())

    def after_backward(self, sites: Mapping[str, Values], step: int, total: int) -> None:
        for p in sites.values() if self.eps else ():
            flat = p.S.flatten(0, -2)
            each = flat.split(p.S.shape[-2])
            p.S.copy_(torch.cat([self._bounded(one) for one in each]).view_as(p.S))


def _width(site: Site) -> int:
    return site.out_features if site.geometry.kind == "embedding" else site.in_features


def _turned(x: Tensor, D: Tensor) -> Tensor:
    """x (I + D), block by block; one block may serve for all."""
    parts = x.unflatten(-1, (-1, D.shape[-1]))
    return x + torch.einsum("...nk,nkj->...nj", parts, D.expand(parts.shape[-2], -1, -1)).flatten(
        -2
    )


def _series(S: Tensor, terms: int) -> Tensor:
    """2 S + 2 S² + … with the last power once: (I + S)(I - S)⁻¹ - I for small S."""
    if terms == 2:
        return 2 * S
    power = S @ S
    D = 2 * S + 2 * power
    for _ in range(3, terms - 1):
        power = power @ S
        D = D + 2 * power
    return D + power @ S
