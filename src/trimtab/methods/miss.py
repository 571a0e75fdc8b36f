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
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.method import Additive, Fields, Names, Param, Values, option
from trimtab.core.operator import Operator, Patches, linear, multiplied
from trimtab.core.site import Site

FORMS, STARTS = ("balance", "mini", "bat"), ("zeros", "kaiming_uniform")


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """`init_weights` is one of the other forms, or whether it starts at zero."""
    said = config.get("init_weights", True)
    return {"start": STARTS[not said]} if isinstance(said, bool) else {"form": said}


def _write(method: Any) -> dict[str, Any]:
    return {"init_weights": method.start == "zeros" if method.form == "balance" else method.form}


@dataclass(frozen=True, kw_only=True)
class MiSS(Additive):
    """A shard of a few columns, shared along the input."""

    name = "miss"
    paper = "arXiv:2409.15371"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="MISS",
        tensors={"D": "miss_block"},
        fields={"rank": "r", "mini": "mini_r", "dropout": "miss_dropout"},
        biases="MiSS_only",
        patterns=(),
        more=Fields(("init_weights",), _read, _write),
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
        plain = self.form == "balance"
        self.require("start", self.start == "zeros" or plain, f'be "zeros" with form={self.form!r}')
        self.require("dropout", not self.dropout or self.form != "bat", 'be 0 with form="bat"')

    def accepts(self, site: Site) -> str | None:
        out, width = site.out_features, site.in_features
        if (reason := super().accepts(site)) is not None:
            return reason
        if self.rank > width:
            return f"a shard of {self.rank} columns is wider than its {width}"
        if self.form == "bat" and (out % self.rank or width % self.rank):
            return f'form="bat": blocks of {self.rank} do not divide {out} x {width}'
        if self.form == "mini" and out % self.mini:
            return f'form="mini": {self.mini} does not divide {out}'
        return None

    def init(self, site: Site) -> dict[str, Param]:
        r, out = self.rank, site.out_features
        shapes = {"balance": (r, out), "mini": (r, self.mini), "bat": (out // r, r, r)}
        D = torch.zeros(shapes[self.form])
        return {
            "D": Param(nn.init.kaiming_uniform_(D, math.sqrt(5)) if self.start != "zeros" else D)
        }

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
