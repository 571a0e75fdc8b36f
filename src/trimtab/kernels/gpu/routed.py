"""Low-rank updates where each example has an adapter of its own, without a copy of any factor.

    y_n += (x_n A_kᵀ) B_kᵀ,   k = the adapter of example n

The rows of an example lie together, so that a tile of rows has one adapter, and reads the factors
where they are. Two passes: down to the rank, along the columns of x; and up, a program for each
tile of y. (As in Punica, Chen et al. 2023, arXiv:2310.18547.)
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_FEW, _MANY = 16, 64  # rows of a tile
_COLUMNS, _OUTPUTS = 128, 128
_LEAST = 16


@triton.jit
def _down(  # type: ignore[no-untyped-def]
    x, which, A, down, tokens, columns, rank, RANK: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
):
    example, t = tl.program_id(0).to(tl.int64), tl.program_id(1) * BM + tl.arange(0, BM)
    adapter = tl.load(which + example).to(tl.int64)
    k, r = tl.arange(0, BK), tl.arange(0, RANK)
    row, real, known = (example * tokens + t)[:, None], (t < tokens)[:, None], (r < rank)[None, :]
    A += adapter * rank * columns
    low = tl.zeros((BM, RANK), dtype=tl.float32)
    for first in range(0, columns, BK):
        at = first + k
        left = at < columns
        x_ = tl.load(x + row * columns + at[None, :], mask=real & left[None, :], other=0.0)
        A_at = A + r[None, :] * columns + at[:, None]
        A_ = tl.load(A_at, mask=known & left[:, None], other=0.0)
        low = tl.dot(x_, A_, low, input_precision="ieee")
    tl.store(down + row * rank + r[None, :], low.to(down.dtype.element_ty), mask=real & known)


@triton.jit
def _up(  # type: ignore[no-untyped-def]
    y, down, which, B, tokens, outputs, rank, RANK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    example, t = tl.program_id(0).to(tl.int64), tl.program_id(1) * BM + tl.arange(0, BM)
    adapter = tl.load(which + example).to(tl.int64)
    n, r = tl.program_id(2) * BN + tl.arange(0, BN), tl.arange(0, RANK)
    row, real, known = (example * tokens + t)[:, None], (t < tokens)[:, None], r < rank
    inside = n < outputs
    low = tl.load(down + row * rank + r[None, :], mask=real & known[None, :], other=0.0)
    B_at = B + adapter * outputs * rank + n[None, :] * rank + r[:, None]
    B_ = tl.load(B_at, mask=known[:, None] & inside[None, :], other=0.0)
    y_at, stored = y + row * outputs + n[None, :], real & inside[None, :]
    sums = tl.load(y_at, mask=stored, other=0.0).to(tl.float32)
    sums += tl.dot(low, B_, input_precision="ieee")
    tl.store(y_at, sums.to(y.dtype.element_ty), mask=stored)


def added(y: Tensor, x: Tensor, which: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """y (…, out) and x (…, in), contiguous; which (examples,), each of as many rows; A (k, r, in)
    and scaled B (k, out, r), contiguous."""
    examples, (_, rank, columns), outputs = len(which), A.shape, B.shape[1]
    tokens = x.numel() // (examples * columns)
    down = x.new_empty(examples * tokens, rank)
    sides = {
        "RANK": max(_LEAST, triton.next_power_of_2(rank)),
        "BM": _FEW if tokens <= _FEW else _MANY,
    }
    tiles = examples, triton.cdiv(tokens, sides["BM"])
    _down[tiles](x, which, A, down, tokens, columns, rank, **sides, BK=_COLUMNS)
    _up[*tiles, triton.cdiv(outputs, _OUTPUTS)](
        y, down, which, B, tokens, outputs, rank, **sides, BN=_OUTPUTS
    )
    return y
