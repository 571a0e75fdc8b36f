"""Files whose factors are relative to a changed base: what was taken from it, found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import carries
from trimtab.core.lowrank import LowRank
from trimtab.core.method import Method
from trimtab.core.site import Site
from trimtab.init.begin import matrix, require_base
from trimtab.init.olora import leading
from trimtab.init.pissa import principal


def restore(
    model: nn.Module, start: Any, acting: Sequence[tuple[Site, Method]], tensors: dict[str, Tensor]
) -> None:
    """A₀ and B₀ of every anchored site, from the base's weights as the start takes them.

    Only their product matters, and that is the same whatever signs the factors have.
    """
    for site, method in acting:
        if not (isinstance(method, LowRank) and method.anchored):
            continue
        if carries(model):
            require_base(model)
        W, rank = matrix(site), method.rank
        A, B = principal(W, rank, method.scale) if start == "pissa" else leading(W, rank)
        for name, tensor in {"A0": A, "B0": B}.items():
            tensors[f"{site.name}.{method.name}.{name}"] = tensor.contiguous().cpu()
