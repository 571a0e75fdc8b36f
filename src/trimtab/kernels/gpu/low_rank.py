"""A product with a frozen matrix and a low-rank update of it, in one pass over x.

    y = x Wᵀ + b + c (x F₁ᵀ) F₂ᵀ

A program owns a tile of y. As it walks along the columns of x it accumulates, beside its tile of
x Wᵀ, all of x F₁ᵀ for its rows: r columns more, from the x that it holds anyway. The update goes
into the same accumulator before that is stored, and y is written once. Sums are in fp32, and
products of fp32 are exact ones, not TF32.

Forward it takes W, A, B; backward, for dx from dy, their transposes Wᵀ, Bᵀ, Aᵀ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_GROUP = 8  # tiles of rows that share the tiles of W they read
_LEAST = 16  # the smallest side of a product


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    x, W, b, F1, F2, y, down,
    rows, columns, outputs, rank, scale,
    W_row, W_column, F1_row, F1_column, F2_row, F2_column,
    BIAS: tl.constexpr, WHOLE: tl.constexpr, RANK: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # Programs that follow each other go down a group of rows first, so that W stays in cache.
    down_tiles, across_tiles = tl.cdiv(rows, BM), tl.cdiv(outputs, BN)
    group, within = tl.program_id(0) // (GROUP * across_tiles), tl.program_id(0)
    within = within % (GROUP * across_tiles)
    height = tl.minimum(GROUP, down_tiles - group * GROUP)
    tile_m, tile_n = group * GROUP + within % height, within // height

    m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    k, r = tl.arange(0, BK), tl.arange(0, RANK)
    # Beyond the edge the first rows are read again, and not stored.
    m_, n_ = (m % rows).to(tl.int64), (n % outputs).to(tl.int64)
    x_at = x + m_[:, None] * columns + k[None, :]
    W_at = W + n_[None, :] * W_row + k[:, None] * W_column
    F1_at = F1 + r[None, :] * F1_row + k[:, None] * F1_column
    known = r < rank

    sums = tl.zeros((BM, BN), dtype=tl.float32)
    low = tl.zeros((BM, RANK), dtype=tl.float32)
    for first in range(0, columns, BK):
        if WHOLE:
            x_, W_ = tl.load(x_at), tl.load(W_at)
            F1_ = tl.load(F1_at, mask=known[None, :], other=0.0)
        else:
            left = k < columns - first
            x_ = tl.load(x_at, mask=left[None, :], other=0.0)
            W_ = tl.load(W_at, mask=left[:, None], other=0.0)
            F1_ = tl.load(F1_at, mask=left[:, None] & known[None, :], other=0.0)
        sums = tl.dot(x_, W_, sums, input_precision="ieee")
        low = tl.dot(x_, F1_, low, input_precision="ieee")
        x_at += BK
        W_at += BK * W_column
        F1_at += BK * F1_column

    F2_at = F2 + n_[None, :] * F2_row + r[:, None] * F2_column
    F2_ = tl.load(F2_at, mask=known[:, None], other=0.0)
    low_ = low.to(x.dtype.element_ty)
    sums += scale * tl.dot(low_, F2_, input_precision="ieee")
    if BIAS:
        sums += tl.load(b + n_)[None, :].to(tl.float32)
    inside = (m < rows)[:, None]
    y_at = y + m_[:, None] * outputs + n_[None, :]
    tl.store(y_at, sums.to(y.dtype.element_ty), mask=inside & (n < outputs)[None, :])
    if tile_n == 0:
        tl.store(down + m_[:, None] * rank + r[None, :], low_, mask=inside & known[None, :])


def product(
    x: Tensor, W: Tensor, b: Tensor | None, F1: Tensor, F2: Tensor, scale: float, **tile: int
) -> tuple[Tensor, Tensor]:
    """x (n, in) contiguous, W (out, in), b (out,), F₁ (r, in), F₂ (out, r) -> y, x F₁ᵀ (n, r)."""
    (rows, columns), outputs, rank = x.shape, len(W), len(F1)
    y, down = x.new_empty(rows, outputs), x.new_empty(rows, rank)
    grid = (triton.cdiv(rows, tile["BM"]) * triton.cdiv(outputs, tile["BN"]),)
    _product[grid](
        *(x, W, x if b is None else b, F1, F2, y, down),
        *(rows, columns, outputs, rank, scale),
        *(*W.stride(), *F1.stride(), *F2.stride()),
        BIAS=b is not None,
        WHOLE=columns % tile["BK"] == 0,
        RANK=max(_LEAST, triton.next_power_of_2(rank)),
        GROUP=_GROUP,
        **tile,
    )
    return y, down


def _tile(BM: int, BN: int, BK: int, warps: int, stages: int) -> tuple[str, Any]:
    sides: dict[str, Any] = {"BM": BM, "BN": BN, "BK": BK, "num_warps": warps, "num_stages": stages}
    return f"triton {BM} x {BN} x {BK}", partial(product, **sides)


WAYS: dict[str, Any] = dict(
    [
        _tile(128, 128, 64, 8, 3),
        _tile(128, 256, 64, 8, 3),
        _tile(64, 128, 64, 4, 3),
        _tile(64, 64, 32, 4, 4),
        _tile(16, 64, 128, 4, 3),
    ]
)


def name(x: Tensor, W: Tensor, b: Tensor | None, F1: Tensor, F2: Tensor, scale: float) -> str:
    """What is measured as one: rows in powers of two, since texts have all lengths."""
    rows, across = triton.next_power_of_2(len(x)), "" if W.stride(1) == 1 else ", transposed"
    shape = f"{rows} x {x.shape[1]} x {len(W)}, rank {len(F1)}{across}"
    return f"low rank {shape}, {str(x.dtype).removeprefix('torch.')}"
