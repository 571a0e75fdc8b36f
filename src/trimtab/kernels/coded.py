"""Products with frozen matrices in eight bits, in training.

    x Wᵀ ≈ s ⊙ (q Wqᵀ),   q = round(x / (m a)),   Wq = round(W m / s)

Processors multiply integers of eight bits at twice the rate of bf16, and a frozen W is coded once,
for the forward pass and for the backward one. `m` balances the columns of x with those of W, by
what the first batch shows (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438); `a` is a scale for
each row and 128 of its columns, `s` one for each output. Adapters, norms and attention keep their
precision. What is rounded away is small beside the noise of a batch; whether it is so for a model,
`agreement` measures.

`int8(model)` puts this into a model's frozen linear maps. They compute so in training mode alone:
what is evaluated, merged or saved is the exact base.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.weak import WeakIdKeyDictionary

from trimtab.core import kernel
from trimtab.core.walk import plain, walk
from trimtab.kernels import cpu
from trimtab.kernels.plain import Product, rows

_LEAST = 64  # inputs and outputs: below, coding costs more than it saves
_BALANCED = 8  # times the median that a column is divided by at most, and at least
_PACKED = 1024  # rows of a matrix packed at once; 64 share a panel
_DTYPES = (torch.bfloat16, torch.float32)

_LOSS = "codes_of_the_loss"  # of a head, beside its modules and parameters
_heads: Any = WeakIdKeyDictionary()  # its weight -> the head, held weakly


@dataclass(frozen=True)
class Codes:
    """A matrix (outputs, columns) as the compiled product takes it."""

    outputs: int
    columns: int
    packed: Tensor
    scales: Tensor
    inverse: Tensor | None  # 1 / m

    @classmethod
    def of(cls, W: Tensor, balance: Tensor | None = None) -> Codes:
        """Those of W (outputs, columns), whose columns are multiplied by `balance` first."""
        library, (outputs, columns) = cpu.loaded(), W.shape
        size = library.trimtab_int8_bytes(outputs, columns)
        packed = torch.empty(size, dtype=torch.int8, device="cpu")
        scales = cpu.floats(outputs)
        for first in range(0, outputs, _PACKED):  # so that W never stands there in fp32 as a whole
            part = W.detach()[first : first + _PACKED].float().contiguous()
            to = packed[library.trimtab_int8_bytes(first, columns) :], scales[first:]
            given = cpu.addresses(part, balance)
            library.trimtab_int8_pack(*given, len(part), columns, *cpu.addresses(*to))
        return cls(outputs, columns, packed, scales, None if balance is None else 1 / balance)


def times(
    x: Tensor,
    codes: Codes,
    bias: Tensor | None = None,
    low: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x (n, columns) by the codes' transpose, with bias (outputs,); `low` (F₁ (r, columns), F₂ (r,
    outputs), c), in fp32, adds c (x F₁ᵀ) F₂. Returns y (n, outputs) and x F₁ᵀ (n, r), filled up
    with zeros to a rank that eights divide."""
    y = x.new_empty(len(x), codes.outputs)
    F1, F2, scale = (None, None, 0.0) if low is None else low
    rank = 0 if F1 is None else len(F1)
    down = cpu.floats(len(x), _eights(rank)) if rank else None
    cpu.loaded().trimtab_int8_linear(
        *(x.data_ptr(), cpu.is_half(x), len(x), codes.columns, codes.outputs),
        *cpu.addresses(codes.inverse, codes.packed, codes.scales, bias),
        *(rank, *cpu.addresses(F1, F2), scale, *cpu.addresses(down, y)),
    )
    return y, down


def outer(d: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale dᵀ x, (r, columns) in fp32, for d (n, r) in fp32, of a rank that eights divide, and x
    (n, columns)."""
    out = cpu.floats(d.shape[1], x.shape[1])
    sizes = (cpu.is_half(x), *x.shape, d.shape[1])
    cpu.loaded().trimtab_outer(d.data_ptr(), x.data_ptr(), *sizes, scale, out.data_ptr())
    return out


def _eights(rank: int) -> int:
    return -8 * (-rank // 8)


class Coded(Product):
    """In the place of a frozen linear map's `forward`: the same product, in training with codes."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.made: tuple[Any, Codes, Codes] | None = None
        self.active = True

    def __call__(self, x: Tensor) -> Tensor:
        if not self.applies(x):
            return linear(x, self.module.weight, self.module.bias)
        y = Int8Linear.apply(rows(x), self, None, None, 0.0)
        return y.view(*x.shape[:-1], y.shape[-1])

    def applies(self, x: Tensor) -> bool:
        W = self.module.weight
        return (
            self.active
            and type(W) is nn.Parameter  # not one that stands in for it
            and self.module.training
            and kernel.enabled()
            and cpu.real(x, W)
            and x.dtype in _DTYPES
            and x.dtype == W.dtype
            and x.shape[-1] == W.shape[1]
            and not any(p.requires_grad for p in self.module.parameters(recurse=False))
            and kernel.unmodified(x)
        )

    def codes(self, x: Tensor) -> tuple[Codes, Codes]:
        """Those for the forward and for the backward pass; made when W is seen for the first time,
        or has changed, as far as torch knows: not through `W.data.copy_`."""
        W, made = self.module.weight, self.made
        place = (W.data_ptr(), W._version)
        if made is None or made[0][0]() is not W or made[0][1] != place:
            balance = _balance(x, W)
            made = self.made = ((weakref.ref(W), place), Codes.of(W, balance), Codes.of(W.mT))
        return made[1:]

    @property
    def bias(self) -> Tensor | None:
        """As it is now, in fp32."""
        bias = self.module.bias
        return None if bias is None else bias.detach().float().contiguous()

    def __deepcopy__(self, memo: dict[int, Any]) -> Coded:
        """Where the copy shares its weight, the codes are the same."""
        twin = Coded(copy.deepcopy(self.module, memo))
        twin.made, twin.active = self.made, self.active
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Coded, (self.module,)


def _balance(x: Tensor, W: Tensor) -> Tensor:
    """m (in,): the square root of what a column of x holds at most over what W's does, within some
    times the median. A column that is silent in this batch may speak up in another."""
    most = x.detach().float().abs().nan_to_num(0.0, 0.0).amax(0)
    own = W.detach().float().abs().amax(0)
    m = (most / own.clamp(min=1e-6)).sqrt()
    spoken = m[m > 0]
    middle = float(spoken.median()) if len(spoken) else 1.0
    return m.clamp(middle / _BALANCED, middle * _BALANCED)


class Int8Linear(torch.autograd.Function):
    """x (n, in) -> y (n, out), with A (r, in) and B (out, r) of LoRA in fp32, or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, coded: Coded, A: Tensor | None, B: Tensor | None, scale: float
    ) -> Tensor:
        there, back = coded.codes(x)
        if A is None or B is None:
            ctx.save_for_backward()
            ctx.facts = coded, back, scale
            return times(x, there, coded.bias)[0]
        low = A.detach().float().contiguous(), B.detach().float().T.contiguous(), scale
        y, down = times(x, there, coded.bias, low)
        assert down is not None
        ctx.save_for_backward(x, A, B, down)
        ctx.facts = coded, back, scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        coded, back, scale = ctx.facts
        dy = dy.contiguous()
        saved = ctx.saved_tensors  # read once: what is checkpointed is made anew for it
        if torch.is_grad_enabled():  # a second derivative is asked for: of the exact product
            return _exact(saved, dy, coded.module.weight, scale)
        if not saved:
            return (times(dy, back)[0] if ctx.needs_input_grad[0] else None), None, None, None, None
        x, A, B, down = saved
        F1, F2 = B.float().T.contiguous(), A.float().contiguous()
        if ctx.needs_input_grad[0]:
            dx, up = times(dy, back, None, (F1, F2, scale))
        else:
            up = dy.new_zeros(len(dy), down.shape[1], dtype=torch.float32)
            dx, up[:, : len(A)] = None, dy @ B.to(dy.dtype)
        assert up is not None
        dA = outer(up, x, scale)[: len(A)].to(A.dtype) if ctx.needs_input_grad[2] else None
        dB = (
            outer(down, dy, scale)[: len(A)].to(B.dtype).T.contiguous()
            if ctx.needs_input_grad[3]
            else None
        )
        return dx, None, dA, dB, None


def _exact(saved: Any, dy: Tensor, W: Tensor, scale: float) -> tuple[Tensor | None, ...]:
    if not saved:
        return dy @ W, None, None, None, None
    x, A, B, _ = saved
    a, b = A.to(x.dtype), B.to(x.dtype)
    up = scale * (dy @ b)
    dB = scale * (dy.T @ (x @ a.T))
    return dy @ W + up @ a, None, (up.T @ x).to(A.dtype), dB.to(B.dtype), None


def of_head(W: Tensor) -> Coded | None:
    """The codes of a head whose loss is asked for in eight bits."""
    held = _heads.get(W)
    head = None if held is None else held()
    found: Coded | None = None if head is None else head.__dict__.get(_LOSS)
    return found


def here() -> bool:
    """Whether the compiled product is there, and this processor has the instructions for it."""
    return kernel.enabled() and cpu.has("int8")


def int8(model: nn.Module, on: bool = True) -> int:
    """Let a model's frozen linear maps multiply in eight bits in training mode from now on, and the
    head that gives its logits where a loss alone asks for those; `on=False` takes it back. Returns
    how many maps do: none where the compiled kernels are not. Of a copy whose tensors are its own,
    ask it anew for the head."""
    count = 0
    head = _head(model)
    if head is not None:
        _heads.pop(head.weight, None)
        head.__dict__.pop(_LOSS, None)
        if on and here():
            _heads[head.weight] = weakref.ref(head)
            head.__dict__[_LOSS] = Coded(head)
    for module in _maps(model):
        if isinstance(module.__dict__.get("forward"), Coded):
            if not on:
                del module.forward
        elif on and here() and "forward" not in module.__dict__:
            module.forward = Coded(module)  # type: ignore[method-assign]
        count += isinstance(module.__dict__.get("forward"), Coded)
    return count


def _maps(model: nn.Module) -> Iterator[nn.Linear]:
    head = _head(model)
    for _, held in walk(model):
        module = plain(held)
        if module is not head and _fits(module):
            yield module


def _head(model: nn.Module) -> nn.Linear | None:
    get = getattr(model, "get_output_embeddings", None)
    head = plain(get()) if get is not None and get() is not None else None
    return head if head is not None and _fits(head) else None


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype in _DTYPES
        and min(module.weight.shape) >= _LEAST
        and not any(p.requires_grad for p in module.parameters(recurse=False))
    )


@contextlib.contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Within, the maps multiply as they were given; their codes stay."""
    found = [module.__dict__.get("forward") for module in _maps(model)]
    head = _head(model)
    all_ = [*found, None if head is None else of_head(head.weight)]
    active = [one for one in all_ if isinstance(one, Coded) and one.active]
    for one in active:
        one.active = False
    try:
        yield
    finally:
        for one in active:
            one.active = True


def agreement(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """The cosine between two gradients of the same parameters."""
    one = torch.cat([found[name].flatten().double() for name in exact])
    two = torch.cat([exact[name].flatten().double() for name in exact])
    return float(torch.dot(one, two) / (one.norm() * two.norm()).clamp(min=1e-300))
