"""LN tuning: Tuning LayerNorm in Attention. Zhao et al. 2023, arXiv:2312.11420.

    y = g ∘ norm(x) + b,   g and b (d,) trained

Only the gains and biases of the normalisations train. They start at the base's own.

Use it where a few thousand parameters must do, and where activations shift rather than features
change: new domains, other modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Names, Param, Transform, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class LNTuning(Transform):
    """Trained gains and biases of the normalisations, in the place of the base's."""

    name = "ln"
    paper = "arXiv:2312.11420"
    targets = ("norms",)
    kinds = frozenset({"norm"})
    learning_rate = 3e-3
    hf: ClassVar[Names | None] = Names(
        "LN_TUNING",
        tensors={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"},
        fields={},
        patterns=(),
    )

    def init(self, site: Site) -> dict[str, Param]:
        own = {"weight": site.weight, "bias": site.bias}
        return {
            name: Param(tensor.detach().clone(), exact=True)
            for name, tensor in own.items()
            if tensor is not None
        }

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return p.weight, None if b is None else p.bias

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        own = dict(p.tensors)
        y = inner.using(own, x.to(torch.promote_types(x.dtype, p.weight.dtype)))
        return y.to(x.dtype) if x.dtype == inner.dtype else y
