"""Prefix tuning: Optimizing Continuous Prompts for Generation. Li and Liang 2021, arXiv:2101.00190;
P-tuning v2, Liu et al. 2022, arXiv:2110.07602.

    attention(q, [K; k], [V; v]),   K, V (heads, n, width) trained at every layer

With a `projection` K and V of all layers are made by one small network of n embeddings,

    [K; V] = W₂ tanh(W₁ E + b₁) + b₂,

which the first paper found to train more stably, and the second leaves out.

Use it for generation with a decoder or encoder-decoder where the weights must not change at all; it
takes positions of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.draw import uniform
from trimtab.core.errors import InputError
from trimtab.core.method import Fields, Names, Param, Prefix, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Prefix):
    """Trained keys and values before those of every self-attention; a decoder's attention over its
    encoder is the target "cross-attention"."""

    name = "prefix"
    paper = "arXiv:2101.00190"
    learning_rate = 3e-2
    hf: ClassVar[Names | None] = Names(
        peft_type="PREFIX_TUNING",
        tensors={},
        fields={"length": "num_virtual_tokens"},
        patterns=(),
        more=Fields(  # a file holds what the network has made, not the network
            ("prefix_projection", "encoder_hidden_size", "init_weights"),
            read=lambda config: {"projection": 0},
            write=lambda method: {"prefix_projection": False},
        ),
    )

    length: int = option(20, "n, keys and values before those of each attention")
    projection: int = option(
        0, "width of the network that makes them, h of W₁ (h, d); 0: they train themselves"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("length", self.length >= 1, "be at least 1")
        self.require("projection", self.projection >= 0, "not be negative")

    @property
    def positions(self) -> int:
        return self.length

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        if not self.projection:
            return {}
        widths = {site.out_features for site in sites}
        if len(widths) > 1:
            raise InputError(
                f"prefix: one network makes keys of one width, and these attentions have "
                f"{sorted(widths)}: give each its own prefix, or leave `projection` out"
            )
        d, h = widths.pop(), self.projection
        return {
            "E": Param(torch.randn(self.length, d)),
            "W1": Param(uniform(h, d, inputs=d)),
            "b1": Param(uniform(h, inputs=d)),
            "W2": Param(uniform(len(sites), 2 * d, h, inputs=h)),
            "b2": Param(uniform(len(sites), 2 * d, inputs=h)),
        }

    def init(self, site: Site) -> dict[str, Param]:
        if self.projection:
            return {}
        heads, width = site.geometry.shape
        return {name: Param(torch.randn(heads, self.length, width)) for name in "KV"}

    def kv(self, p: Values, call: Call) -> tuple[Tensor, Tensor]:
        if not self.projection:
            return p.K, p.V
        both = linear(torch.tanh(linear(p.E, p.W1, p.b1)), p.W2[p.index], p.b2[p.index])
        k, v = both.unflatten(-1, (2, *p.site.geometry.shape)).permute(1, 2, 0, 3)
        return k, v
