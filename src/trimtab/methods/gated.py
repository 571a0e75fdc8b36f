"""The gated submodules of UniPELT. Mao et al. 2022, arXiv:2110.07577.

    LoRA     y' = W x + G (alpha / r) B A x
    prefix   attention(q, [G K; k], [G V; v])
    adapter  h' = h + G (U σ(D h + d) + u)

The gate G = mean over positions of sigmoid(w · x + w₀), one number an example and site, lets a
submodule act where it helps. It reads what the submodule reads: x is the map's input for LoRA, the
attention's for the prefix, and the feed-forward sublayer's output h for the adapter. The mean sees
all real positions, so that in a causal model it is for reading, such as classification.

Use it through `unipelt`, or where one of its parts should learn from the input how much it counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import gate
from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.lowrank import LowRank
from trimtab.core.method import Intervention, Param, Prefix, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class GatedLoRA(LowRank, Intervention):
    """LoRA at queries and values, whose gate depends on the input: it has no one matrix."""

    name = "gated-lora"
    paper = "arXiv:2110.07577"
    targets = ("query", "value")
    by_example = True
    learning_rate = 4.5e-3

    def init(self, site: Site) -> dict[str, Param]:
        return {**LowRank.init(self, site), **gate.start(site.in_features)}

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        A, B = self.factors(p, x.dtype)
        added = self.scale * linear(linear(x, A), B)
        return y + gate.gate(p, x, call).to(y.dtype) * added.to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class GatedPrefix(Prefix):
    """Keys and values before every self-attention's, under a gate."""

    name = "gated-prefix"
    paper = "arXiv:2110.07577"
    by_example = True
    learning_rate = 5e-4
    reads_input = True

    length: int = option(10, "n, trained keys and values at each attention")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("length", self.length >= 1, "be at least 1")

    @property
    def positions(self) -> int:
        return self.length

    def init(self, site: Site) -> dict[str, Param]:
        heads, width = site.geometry.shape
        kv = {name: Param(torch.randn(heads, self.length, width)) for name in "KV"}
        return {**kv, **gate.start(site.in_features)}

    def kv(self, p: Values, call: Call) -> tuple[Tensor, Tensor]:
        g = gate.gate(p, call.tap(p.site.name), call)[..., None]
        return g * p.K, g * p.V


@dataclass(frozen=True, kw_only=True)
class GatedAdapter(Bottleneck):
    """A bottleneck after each feed-forward sublayer, under a gate."""

    name = "gated-adapter"
    paper = "arXiv:2110.07577"
    targets = ("mlp-output",)
    by_example = True
    learning_rate = 1.5e-3

    width: int = 48

    def init(self, site: Site) -> dict[str, Param]:
        return {**super().init(site), **gate.start(site.out_features)}

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + gate.gate(p, y, call).to(y.dtype) * self.added(p, y)
