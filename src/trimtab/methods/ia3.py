"""IA³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.
Liu et al. 2022, arXiv:2205.05638.

    W' = l ∘ W,   l (out, 1) at keys and values,   l (1, in) at the second feed-forward map

l starts at one. Scaling rows scales the output, bias included; scaling columns scales the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Names, Param, Transform, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class IA3(Transform):
    """Learned rescaling. `scales` is "output", "input", or "auto": the input at feed-forward sites
    that narrow (role `down`), the output elsewhere."""

    name = "ia3"
    paper = "arXiv:2205.05638"
    targets = ("key", "value", "down")
    learning_rate = 5e-3
    hf: ClassVar[Names | None] = Names("IA3", tensors={"l": "ia3_l"}, fields={}, oriented="l")

    scales: str = "auto"

    def __post_init__(self) -> None:
        if self.scales not in {"auto", "input", "output"}:
            raise InputError(f"ia3: scales is 'auto', 'input' or 'output', not {self.scales!r}")

    def init(self, site: Site) -> dict[str, Param]:
        at_input = self.scales == "input" or (self.scales == "auto" and "down" in site.roles)
        shape = (1, site.in_features) if at_input else (site.out_features, 1)
        return {"l": Param(torch.ones(shape), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if p.l.shape[0] == 1 and p.l.shape[1] == W.shape[1]:
            return W * p.l, b
        return W * p.l, None if b is None else b * p.l[:, 0]

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if p.l.shape[0] == 1 and p.l.shape[1] == x.shape[-1]:
            return inner((x * p.l[0]).to(x.dtype))
        y = inner(x)
        return (y * p.l[:, 0]).to(y.dtype)
