"""A gate: how much of a submodule acts on an example, read from what the submodule reads."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.draw import uniform
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Values
from trimtab.core.operator import linear


def start(d: int) -> dict[str, Param]:
    """Of an input of width d."""
    return {"w": Param(uniform(d, inputs=d)), "w0": Param(torch.zeros(1))}


def gate(p: Values, x: Tensor, call: Call) -> Tensor:
    """σ(w · x + w0) averaged over the real positions of x (batch, positions, d), of each example
    (batch, 1, 1); of x (batch, d), whose rows are examples, (batch, 1)."""
    if call.cached.get(p.site.stack or ""):
        raise InputError(
            f"at {p.site.name!r} a gate reads all positions of an example, of which a cache keeps "
            "none: call the model, or generate, with use_cache=False"
        )
    open_ = torch.sigmoid(linear(x.to(p.w.dtype), p.w[None], p.w0))
    if x.ndim < 3:
        return open_
    mask = call.mask(p.site.stack, x)
    if mask is None:
        return open_.mean(1, keepdim=True)
    real = mask.to(open_.dtype)[..., None]
    return (open_ * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
