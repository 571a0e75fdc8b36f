"""IA³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.
Liu et al. 2022, arXiv:2205.05638.

    W' = l ∘ W,   l (out, 1) at keys and values,   l (1, in) at the second feed-forward map

l starts at one. Scaling rows scales the output, bias included; scaling columns scales the input,
at a convolution its channels.

Use it with few examples, or where adapters must be tiny: three vectors a block, which merge without
a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Names, Param, Transform, Values, option
from trimtab.core.operator import Operator, Patches
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class IA3(Transform):
    """Learned rescaling: by default of the input at feed-forward sites that narrow (role `down`),
    of the output elsewhere."""

    name = "ia3"
    paper = "arXiv:2205.05638"
    targets = ("key", "value", "down")
    kinds = frozenset({"linear", "embedding", "conv"})
    learning_rate = 1.5e-2
    hf: ClassVar[Names | None] = Names(
        "IA3", tensors={"l": "ia3_l"}, fields={}, oriented="l", transposed=True, patterns=()
    )

    scales: str = option("auto", 'what l multiplies: "input", "output", or "auto": by the site')

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("auto", "input", "output")
        self.require("scales", self.scales in known, f"be one of {', '.join(known)}")

    def accepts(self, site: Site) -> str | None:
        if self._at_input(site) and site.geometry.kind == "embedding":
            return "an embedding has no input to scale"
        if self._at_input(site) and site.geometry.groups > 1:
            return "the input of a grouped convolution is not scaled"
        return super().accepts(site)

    def _at_input(self, site: Site) -> bool:
        return self.scales == "input" or (self.scales == "auto" and "down" in site.roles)

    def init(self, site: Site) -> dict[str, Param]:
        g = site.geometry
        width = g.shape[1] if g.kind == "conv" else g.in_features
        shape = (1, width) if self._at_input(site) else (g.out_features, 1)
        return {"l": Param(torch.ones(shape), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self._at_input(p.site):
            return W * p.l.repeat_interleave(W.shape[1] // p.l.shape[1], 1), b
        return W * p.l, None if b is None else b * p.l[:, 0]

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if self._at_input(p.site):
            if isinstance(x, Patches):
                channels = p.l.view(-1, *[1] * (-1 - x.channels))
                return inner(Patches(x.module, (x.x * channels).to(x.dtype)))
            return inner((x * p.l[0]).to(x.dtype))
        y = inner(x)
        return (y * p.l[:, 0]).to(y.dtype)
