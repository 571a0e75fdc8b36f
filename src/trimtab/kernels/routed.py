"""Low-rank updates where each example has an adapter of its own: all in two products a site, or
where nothing trains in one compiled pass.

    y_n = x_n Wᵀ + b + (x_n A_kᵀ) (s_k B_k)ᵀ,   k = the adapter of example n

The factors of the adapters in the batch are stacked, ranks filled up with zeros. Between calls that
train nothing a site keeps its last stack, as long as it holds the same factors.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trimtab.core.delta import Delta
from trimtab.core.kernel import Router
from trimtab.core.operator import Base, Operator
from trimtab.kernels import cpu
from trimtab.kernels.plain import plain

Deltas = Sequence[Delta | None]
Stack = tuple[Tensor, Tensor]
_paired: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()
_kept: weakref.WeakKeyDictionary[nn.Module, tuple[object, Stack]] = weakref.WeakKeyDictionary()


def _applies(deltas: Deltas, x: Tensor, inner: Operator) -> bool:
    """Where dropout is off, and no part of a fused map is meant."""
    return plain(inner, x) and not any(
        delta is not None
        and (delta.site.rows is not None or (delta.method.dropout and delta.training))  # type: ignore[attr-defined]
        for delta in deltas
    )


def _run(deltas: Deltas, which: Tensor, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    A, B = _stacked(deltas, inner.module, x.dtype)
    y, examples = inner(x), len(which)
    if _compiled(A, x, y):
        return _added(y, x.contiguous(), which, A, _pairs(inner.module, B))
    parts = x.reshape(examples, -1, x.shape[-1])
    down = torch.bmm(parts, A[which].mT)
    return torch.baddbmm(y.reshape(examples, -1, y.shape[-1]), down, B[which].mT).view(y.shape)


def _stacked(deltas: Deltas, module: nn.Module, dtype: torch.dtype) -> Stack:
    """A (k, r, in) and scaled B (k, out, r)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _stack([None if delta is None else _factors(delta) for delta in deltas], dtype)
    token = [dtype, *(None if delta is None else _state(delta) for delta in deltas)]
    kept = _kept.get(module)
    if kept is None or kept[0] != token:
        factors = [None if delta is None else _factors(delta) for delta in deltas]
        kept = _kept[module] = token, _stack(factors, dtype)
    return kept[1]


def _state(delta: Delta) -> list[int]:
    """What differs when a tensor of the delta, or its place, has changed."""
    held = (*delta._parameters.values(), *delta._buffers.values())
    return [fact for t in held if t is not None for fact in (id(t), t._version, t.data_ptr())]


def _compiled(A: Tensor, x: Tensor, y: Tensor) -> bool:
    """Whether the compiled kernel takes these: in bf16, where nothing trains."""
    return (
        not torch.is_grad_enabled()
        and cpu.real(x, y, A)
        and x.dtype == y.dtype == torch.bfloat16
        and A.shape[1] % 8 == 0
        and A.shape[2] % 2 == 0
        and y.is_contiguous()
        and cpu.has("routed")
    )


def _pairs(module: nn.Module, B: Tensor) -> Tensor:
    """B (k, out, r) as pairs of ranks (k, r / 2, out); kept beside the stack that it is of."""
    kept = _paired.get(module)
    if kept is None or kept[0] is not B:
        pairs = B.contiguous().view(torch.int32).mT.contiguous()
        kept = _paired[module] = B, pairs
    return kept[1]


def _added(y: Tensor, x: Tensor, which: Tensor, A: Tensor, B: Tensor) -> Tensor:
    which, A = which.to(torch.int64).contiguous(), A.contiguous()
    examples, columns, outputs = len(which), x.shape[-1], y.shape[-1]
    sizes = examples, y.numel() // (examples * outputs), columns, outputs, A.shape[1]
    cpu.loaded().trimtab_routed(*cpu.addresses(x, y, which), *sizes, *cpu.addresses(A, B))
    return y


def _factors(delta: Delta) -> tuple[Tensor, Tensor, float]:
    method: Any = delta.method
    return (*method.factors(delta), method.scale)


def _stack(factors: Sequence[tuple[Tensor, Tensor, float] | None], dtype: torch.dtype) -> Stack:
    known = [one for one in factors if one is not None]
    rank = max(len(A) for A, _, _ in known)
    no_A, no_B = known[0][0].new_zeros(rank, known[0][0].shape[1]), known[0][1].new_zeros(1)
    no_B = no_B.expand(known[0][1].shape[0], rank)
    A = [no_A if one is None else pad(one[0], (0, 0, 0, rank - len(one[0]))) for one in factors]
    B = [no_B if one is None else pad(one[1], (0, rank - len(one[0]))) for one in factors]
    scales = known[0][1].new_tensor([one[2] if one else 0.0 for one in factors])
    return torch.stack(A).to(dtype), (torch.stack(B) * scales[:, None, None]).to(dtype)


LOW_RANK = Router("low-rank-routed", _applies, _run)
