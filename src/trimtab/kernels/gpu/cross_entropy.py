"""Cross entropy of a chunk of logits, and its gradient in their place.

    L = log Σ_v exp(z_v) - z_y,   ∂L/∂z_v = softmax(z)_v - [v = y]

A program owns a row. It reads the row once for the largest logit so far and the sum beneath it,
which is scaled anew when a larger one comes, and once more to write the gradient over it: nothing
of the row's size is held beside it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 8


@triton.jit
def _row(  # type: ignore[no-untyped-def]
    z, labels, losses, classes, SLOPES: tl.constexpr, BLOCK: tl.constexpr
):
    row, v = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    z += row * classes
    # Finite, so that a block of logits at minus infinity gives no nan.
    top, total, own = -3.0e38, 0.0, 0.0
    for first in range(0, classes, BLOCK):
        at = first + v
        z_ = tl.load(z + at, mask=at < classes, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(z_, 0))
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(z_ - larger), 0)
        own += tl.sum(tl.where(at == label, z_, 0.0), 0)
        top = larger
    lse = top + tl.log(total)
    tl.store(losses + row, lse - own)
    if SLOPES:
        for first in range(0, classes, BLOCK):
            at = first + v
            z_ = tl.load(z + at, mask=at < classes, other=float("-inf")).to(tl.float32)
            slope = tl.exp(z_ - lse) - tl.where(at == label, 1.0, 0.0)
            tl.store(z + at, slope.to(z.dtype.element_ty), mask=at < classes)


def losses(z: Tensor, labels: Tensor, slopes: bool) -> Tensor:
    """z (n, V) contiguous, labels (n,) all within V -> losses (n,) in fp32; with `slopes` z becomes
    their gradient."""
    found = torch.empty(len(z), dtype=torch.float32, device=z.device)
    block = min(_BLOCK, triton.next_power_of_2(z.shape[1]))
    _row[(len(z),)](z, labels, found, z.shape[1], SLOPES=slopes, BLOCK=block, num_warps=_WARPS)
    return found
