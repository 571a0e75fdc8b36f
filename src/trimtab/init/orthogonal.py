"""Orthogonal start: both factors are random, and their product is zero.

    Q (r, r) orthogonal, X and Y random:   A = (X Q[::2])ᵀ,   B = Y Q[1::2];   W' = W + s B A = W

As HF PEFT's `init_lora_weights="orthogonal"`: both factors receive gradients from the first step
on, where with B = 0 only B does. No anchor is needed; W' = W up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import free, places, settle


@torch.no_grad()
def orthogonal(model: nn.Module, name: str | None = None) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at factors whose product is
    zero. The rank must be even."""
    adapter, found = places(model, name)
    starts = []
    for place in found:
        if place.method.rank % 2:
            raise InputError(
                f"the rank at {place.site.name!r} is {place.method.rank}: one half of it goes to "
                "each factor, so it must be even"
            )
        starts.append(free(place, *_drawn(place.delta.A, place.delta.B)))
    return settle(adapter, starts)


def _drawn(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """New factors of these shapes."""
    *experts, rank, inputs = A.shape
    Q, _ = torch.linalg.qr(torch.randn(*experts, rank, rank))
    X = torch.randn(*experts, inputs, rank // 2)
    Y = torch.randn(*experts, rank // 2, B.shape[-2])
    A_new = (X @ Q[..., 0::2, :]).mT / 10
    B_new = Y.mT @ Q[..., 1::2, :] / 10
    return A_new.to(A.device), B_new.to(B.device)
