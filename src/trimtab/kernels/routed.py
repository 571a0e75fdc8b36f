"""Low-rank updates where each example has an adapter of its own: all in two products a site, or
where nothing trains in one compiled pass; a single adapter takes that pass too.

    y_n = x_n Wᵀ + b + (x_n A_kᵀ) (s_k B_k)ᵀ,   k = the adapter of example n

The factors of the adapters in the batch are stacked, ranks filled up with zeros. A site keeps the
last stack of frozen factors, as long as it holds the same ones, as far as torch knows: not where
they are written into through `A.data.copy_`. Of factors that train none is kept:
a step may write into them and leave their version as it was, as torch's fused optimizers do.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim.optimizer import register_optimizer_step_post_hook

from trimtab.core.delta import Delta
from trimtab.core.kernel import Kernel, Router
from trimtab.core.operator import Base, Operator
from trimtab.kernels import cpu, gpu
from trimtab.kernels.plain import plain, rows

Deltas = Sequence[Delta | None]
_PIECE = 32  # rows of one adapter that a thread takes at a time
_PAGE, _WAYS = 2048, 8  # numbers whose distance shares a cache's set, and how many a set holds


class Stack:
    """Factors of several adapters, scaled: A (k, r, in) and B (k, out, r). `of` are the tensors
    that it was made of, whose memory nothing else takes while it is kept."""

    def __init__(self, A: Tensor, B: Tensor) -> None:
        self.A, self.B = A, B
        self.of: Sequence[Tensor] = ()

    @functools.cached_property
    def pairs(self) -> Tensor:
        """B in bf16 as pairs of ranks (k, r / 2, out)."""
        return self.B.contiguous().view(torch.int32).mT.contiguous()


_steps = 0  # of all optimizers: between two calls factors may have been unfrozen, and frozen again


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)

Kept = MutableMapping[nn.Module, tuple[object, Stack]]
_mixed: Kept = weakref.WeakKeyDictionary()
_alone: Kept = weakref.WeakKeyDictionary()  # of its own: whoever switches loses neither


def _applies(deltas: Deltas, x: Tensor, inner: Operator) -> bool:
    """Where dropout is off, and no part of a fused map is meant."""
    return plain(inner, x) and not any(
        delta is not None
        and (delta.site.rows is not None or (delta.method.dropout and delta.training))  # type: ignore[attr-defined]
        for delta in deltas
    )


def _run(deltas: Deltas, which: Tensor, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    stack = _stacked(_mixed, deltas, inner.module, x.dtype)
    y, A, B, examples = inner(x), stack.A, stack.B, len(which)
    if gpu.takes(y, x, A, B) and y.is_contiguous() and x.dtype == y.dtype:
        return gpu.routed_(y, x.contiguous(), which, A, B)
    if _compiled(A.shape[1], x, y) and cpu.real(A):
        return _added(y, x.contiguous(), which, stack)
    parts = x.reshape(examples, -1, x.shape[-1])
    down = torch.bmm(parts, A[which].mT)
    return torch.baddbmm(y.reshape(examples, -1, y.shape[-1]), down, B[which].mT).view(y.shape)


def _applies_alone(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """Where nothing trains, in bf16."""
    method: Any = delta.method
    return not torch.is_grad_enabled() and _applies([delta], x, inner) and _compiled(method.rank, x)


def _run_alone(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    """The rows are as many examples of one adapter, and a shorter one with what is left of them."""
    assert isinstance(inner, Base)
    stack = _stacked(_alone, [delta], inner.module, x.dtype)
    y = inner(x)
    if not _compiled(stack.A.shape[1], x, y):
        return y + x @ stack.A[0].mT @ stack.B[0].mT
    flat, flat_y = rows(x), y.view(-1, y.shape[-1])
    whole = len(flat) - len(flat) % _PIECE
    for part, examples in (slice(whole), whole // _PIECE), (slice(whole, None), 1):
        if len(flat[part]):
            _added(flat_y[part], flat[part], torch.zeros(examples, dtype=torch.int64), stack)
    return y


def _stacked(kept: Kept, deltas: Deltas, module: nn.Module, dtype: torch.dtype) -> Stack:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _stack(deltas, dtype)
    tensors = _held(deltas)
    if any(tensor.requires_grad or tensor.is_inference() for tensor in tensors):
        kept.pop(module, None)
        return _stack(deltas, dtype)
    token, found = (dtype, _steps, *_state(deltas, tensors)), kept.get(module)
    if found is None or found[0] != token:
        found = kept[module] = token, _stack(deltas, dtype)
        found[1].of = [tensor.detach() for tensor in tensors]
    return found[1]


def _held(deltas: Deltas) -> list[Tensor]:
    """Their parameters and buffers."""
    known = [delta for delta in deltas if delta is not None]
    held = [t for d in known for t in (*d._parameters.values(), *d._buffers.values())]
    return [t for t in held if t is not None]


def _state(deltas: Deltas, tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """What differs when a delta, a tensor of one, or its place has changed. A few long lists: of
    each delta one would cost as much as a hundredth of the base. Weak references, because another
    delta may come to lie where one was."""
    return (
        [None if delta is None else weakref.ref(delta) for delta in deltas],
        [None if delta is None else delta.method for delta in deltas],
        list(map(id, tensors)),
        [t._version for t in tensors],
        list(map(Tensor.data_ptr, tensors)),
    )


def _compiled(rank: int, x: Tensor, y: Tensor | None = None) -> bool:
    """Whether the compiled kernel takes these: in bf16, where nothing trains."""
    return (
        not torch.is_grad_enabled()
        and cpu.real(x, y)
        and x.dtype == torch.bfloat16
        and (y is None or (y.dtype == x.dtype and y.is_contiguous()))
        and rank % 8 == 0
        and x.shape[-1] % 2 == 0
        and cpu.has("routed")
    )


def _added(y: Tensor, x: Tensor, which: Tensor, stack: Stack) -> Tensor:
    """y += (x A_kᵀ) B_kᵀ in place. The kernel goes down columns: of rows that share a cache's set
    it is given no more at a time than the set holds."""
    columns, outputs = x.shape[-1], y.shape[-1]
    each = y.numel() // (len(which) * outputs)
    if outputs % _PAGE == 0 and each % _WAYS == 0:
        which, each = which.repeat_interleave(each // _WAYS), _WAYS
    which, A = which.to(torch.int64).contiguous(), stack.A.contiguous()
    sizes = len(which), each, columns, outputs, A.shape[1]
    factors = cpu.addresses(A, stack.pairs)
    cpu.loaded().trimtab_routed(*cpu.addresses(x, y, which), *sizes, *factors)
    return y


def _factors(delta: Delta) -> tuple[Tensor, Tensor, float]:
    method: Any = delta.method
    return (*method.factors(delta), method.scale)


def _stack(deltas: Deltas, dtype: torch.dtype) -> Stack:
    factors = [None if delta is None else _factors(delta) for delta in deltas]
    known = [one for one in factors if one is not None]
    rank = max(len(A) for A, _, _ in known)
    no_A, no_B = known[0][0].new_zeros(rank, known[0][0].shape[1]), known[0][1].new_zeros(1)
    no_B = no_B.expand(known[0][1].shape[0], rank)
    A = [no_A if one is None else pad(one[0], (0, 0, 0, rank - len(one[0]))) for one in factors]
    B = [no_B if one is None else pad(one[1], (0, rank - len(one[0]))) for one in factors]
    scales = known[0][1].new_tensor([one[2] if one else 0.0 for one in factors])
    return Stack(torch.stack(A).to(dtype), (torch.stack(B) * scales[:, None, None]).to(dtype))


LOW_RANK = Router("low-rank-routed", _applies, _run)
ALONE = Kernel("lora-alone", _applies_alone, _run_alone)
