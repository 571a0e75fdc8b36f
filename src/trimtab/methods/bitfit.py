"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models.
Ben-Zaken, Ravfogel and Goldberg 2022, arXiv:2106.10199.

    b' = b + c

Only the biases train: those of linear maps and of norms. c starts at zero.

Use it where hardly anything may change and the base has biases: encoders such as BERT do, most
newer decoders have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Param, Transform, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class BitFit(Transform):
    """A trained shift of every bias that the model has."""

    name = "bitfit"
    paper = "arXiv:2106.10199"
    targets = ("biases",)
    learning_rate = 2e-3

    def accepts(self, site: Site) -> str | None:
        return "it has no bias" if site.bias is None or site.geometry.kind == "other" else None

    def init(self, site: Site) -> dict[str, Param]:
        return {"c": Param(torch.zeros(site.out_features), exact=True)}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W, p.c if b is None else b + p.c

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y = inner(x)
        return (y + p.c).to(y.dtype)
