"""Modules trained whole, such as a new head beside an adapter (HF PEFT's `modules_to_save`).

    θ' = φ

φ starts as a copy of all the tensors θ that the module holds; the base keeps its own, so that
several adapters on one base each have their head.

Use it through `train=` for a new head or an added embedding beside a method that adapts the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Param, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Geometry, Site, tensors_of


@dataclass(frozen=True, kw_only=True)
class Whole(Method):
    """A trained copy of everything that a module holds, in the module's own layout and names."""

    name = "whole"
    learning_rate = 1.11e-4

    def accepts(self, site: Site) -> str | None:
        if site.parameter is not None or site.rows is not None:
            return f"it is a part of what {type(site.module).__name__} holds: train that whole"
        if not any(True for _ in site.module.parameters(recurse=False)):
            return "it has no parameters of its own"
        computed = "weight" not in site.module._parameters
        if computed and isinstance(getattr(site.module, "weight", None), Tensor):
            return "its weight is computed from other tensors, which have no place in a copy"
        if getattr(site.module, "track_running_stats", False):
            return "it keeps running statistics, which no adapter holds"
        return None

    def init(self, site: Site) -> dict[str, Param]:
        own = tensors_of(site.module)
        return {name: Param(tensor.detach().clone(), exact=True) for name, tensor in own.items()}

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raise InputError("a module trained whole has no law over the base's matrix: it replaces it")

    def rewrite(self, p: Values, own: dict[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        return {name: p.tensors[name] for name in own}

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        own = {name: p.tensors[name].to(theta.dtype) for name, theta in inner.tensors().items()}
        return inner.using(own, x)
