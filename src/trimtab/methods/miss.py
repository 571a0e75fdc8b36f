"""MiSS: Matrix Shard Sharing. Kang and Yin 2024, arXiv:2409.15371.

    W' = W + E(D),   D (r, out),   E(D)[o, i] = D[i mod r, o]

One shard of r columns serves all along the input, so that the product is that of the input's shards
summed: (Σ_j x_j) D. In the form "mini", D (r, mini) repeats along the output as well. In "bat",
with blocks of r x r and D (out / r, r, r), W'_ij = W_ij + W_ij D_i + D_i. D starts at zero.

Use it where LoRA's two products are one too many: one small matrix a site, and quick to train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.draw import kaiming
from trimtab.core.method import Additive, Fields, Names, Param, Values, option
from trimtab.core.operator import Operator, Patches, linear, multiplied
from trimtab.core.site import Site

FORMS, STARTS = ("balance", "mini", "bat"), ("zeros", "kaiming_uniform")


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """`init_weights` is one of the other forms, or whether it starts at zero."""
    said = config.get("init_weights", True)
    mini = {"mini": config.get("mini_r", 1)} if said == "mini" else {}
    return {"start": STARTS[not said]} if isinstance(said, bool) else {"form": said, **mini}


def _write(method: Any) -> dict[str, Any]:
    start = method.start == "zeros" if method.form == "balance" else method.form
    return {"init_weights": start, "mini_r": method.mini}


@dataclass(frozen=True, kw_only=True)
class MiSS(Additive):
    """A shard of a few columns, shared along the input."""

    name = "miss"
    paper = "arXiv:2409.15371"
    learning_rate = 1.11e-4
    hf: ClassVar[Names | None] = Names(
        peft_type="MISS",
        tensors={"D": "miss_block"},
        fields={"rank": "r", "dropout": "miss_dropout"},
        biases="MiSS_only",
        patterns=(),
        more=Fields(("init_weights", "mini_r"), _read, _write),
    )

    rank: int = option(16, "r, columns of the shard, at most the input's width")
    form: str = option("balance", 'D: "balance" (r, out), "mini" (r, mini), "bat" (out / r, r, r)')
    mini: int = option(1, 'columns of D in the form "mini", which repeat along the output')
    start: str = option("zeros", 'D at the start: "zeros" or, of "balance", "kaiming_uniform"')

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("mini", self.mini >= 1, "be at least 1")
        self.require("form", self.form in FORMS, f"be one of {', '.join(FORMS)}")
        self.require("start", self.start in STARTS, f"be one of {', '.join(STARTS)}")
        self.require_use("mini", self.form == "mini", 'with form="mini"')
        self.require_use("start", self.form == "balance", 'with form="balance"')
        self.require_use("dropout", self.form != "bat", 'where form is not "bat"')

    def accepts(self, site: Site) -> str | None:
        out, width = site.out_features, site.in_features
        if (reason := super().accepts(site)) is not None:
            return reason
        if self.rank > width:
            return f"a shard of {self.rank} columns is wider than its {width}"
        if self.form == "bat" and (out % self.rank or width % self.rank):
            return f'form="bat": blocks of {self.rank} do not divide {out} x {width}'
        uneven = self.form == "mini" and out % self.mini
        return f'form="mini": {self.mini} does not divide {out}' if uneven else None

    def init(self, site: Site) -> dict[str, Param]:
        r, out = self.rank, site.out_features
        shapes = {"balance": (r, out), "mini": (r, self.mini), "bat": (out // r, r, r)}
        draw = torch.zeros if self.start == "zeros" else kaiming
        return {"D": Param(draw(*shapes[self.form]))}

    def _shard(self, p: Values) -> Tensor:
        """(out, r)."""
        return p.D.mT.repeat(p.site.out_features // p.D.shape[-1], 1)

    def delta(self, p: Values) -> Tensor:
        width = p.site.in_features
        return self._shard(p).repeat(1, math.ceil(width / self.rank))[:, :width]

    def matvec(self, p: Values, x: Any) -> Tensor:
        if isinstance(x, Patches):
            return linear(x, self.delta(p))
        if not x.dtype.is_floating_point:
            return linear(x % self.rank, self._shard(p))
        x = F.pad(x, (0, -p.site.in_features % self.rank))
        return linear(x.unflatten(-1, (-1, self.rank)).sum(-2), self._shard(p))

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.form != "bat":
            return super().affine(p, W, b)
        blocks = W.unflatten(-1, (-1, self.rank)).unflatten(0, (-1, self.rank))  # (i, r, j, r)
        D = p.D.to(W.dtype)
        change = torch.einsum("irjc,ick->irjk", blocks, D) + D[:, :, None]
        return W + change.flatten(-2).flatten(0, 1), b

    def forward(self, p: Values, x: Any, inner: Operator, call: Call) -> Tensor:
        if self.form != "bat":
            return super().forward(p, x, inner, call)
        return multiplied(inner, x, *self.affine(p, inner.weight, inner.bias))
