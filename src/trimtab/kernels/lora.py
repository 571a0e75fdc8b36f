"""LoRA on a linear map, forward and backward written out.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ
    dx = dy W + s (dy B) A,   dA = s (dy B)ᵀ x,   dB = s dyᵀ (x Aᵀ)

What autograd would do beyond this: keep a cast copy of the activations for each of q, k and v, keep
products of the width of the output, and add in separate passes. Here x is kept once, the rank-r
products are accumulated into the large ones, and the fp32 masters A and B are cast down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.core.delta import Delta
from trimtab.core.kernel import Kernel, register, register_router
from trimtab.core.operator import Base, Operator
from trimtab.kernels import gpu
from trimtab.kernels.coded import Coded, Int8Linear
from trimtab.kernels.plain import free_of_hooks, plain, rows
from trimtab.kernels.routed import ALONE, LOW_RANK
from trimtab.methods.lora import LoRA


def product(
    x: Tensor, W: Tensor, b: Tensor | None, F1: Tensor, F2: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """x Wᵀ + b + scale (x F₁ᵀ) F₂ᵀ and x F₁ᵀ; on a GPU in one pass where that is faster."""
    return gpu.product(_by_torch, x, W, b, F1, F2, scale)


def _by_torch(
    x: Tensor, W: Tensor, b: Tensor | None, F1: Tensor, F2: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    y, down = torch.nn.functional.linear(x, W, b), x @ F1.T
    return y.addmm_(down, F2.T, alpha=scale), down


class LoRALinear(torch.autograd.Function):
    """x (n, in), W (out, in), b (out,) or None, A (r, in) and B (out, r) in fp32 -> y (n, out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        y, down = product(x, W, b, A.to(x.dtype), B.to(x.dtype), scale)
        ctx.save_for_backward(x, W, A, B, down)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, down = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, and goes through x Aᵀ too
            down = x @ A.to(x.dtype).T
        dy = dy.contiguous()
        a, b_up = A.to(dy.dtype), B.to(dy.dtype)
        if ctx.needs_input_grad[0]:
            dx, up = product(dy, W.T, None, b_up.T, a.T, ctx.scale)
        else:
            dx, up = None, dy @ b_up
        dA = (up.T @ x).to(A.dtype).mul_(ctx.scale) if ctx.needs_input_grad[3] else None
        dB = None
        if ctx.needs_input_grad[4]:  # as (r, out): a tall transpose first is 1.7 times slower
            dB = (down.T @ dy).to(B.dtype).mul_(ctx.scale).T.contiguous()
        return dx, None, None, dA, dB, None


def _applies(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """Where dropout is off."""
    method: Any = delta.method
    return plain(inner, x) and not (method.dropout and delta.training)


def _run(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    return _with_factors(LoRALinear, delta, x, inner.module.weight, inner.module.bias)


def _with_factors(function: Any, delta: Delta, x: Tensor, *base: Any) -> Tensor:
    """What a function of autograd's makes of x, its part of the base and the factors."""
    method: Any = delta.method
    y: Tensor = function.apply(rows(x), *base, *method.factors(delta), method.scale)
    return y.view(*x.shape[:-1], y.shape[-1])


def _applies_to_codes(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """Where a map of codes lies right beneath, and dropout is off."""
    method: Any = delta.method
    if not isinstance(inner, Base) or not isinstance(x, Tensor):
        return False
    own = inner.module.__dict__.get("forward")
    return (
        isinstance(own, Coded)
        and free_of_hooks(inner.module)
        and not (method.dropout and delta.training)
        and own.applies(x)
    )


def _run_on_codes(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    return _with_factors(Int8Linear, delta, x, inner.module.__dict__["forward"])


register(LoRA, Kernel("lora-linear", _applies, _run))
register(LoRA, Kernel("lora-int8", _applies_to_codes, _run_on_codes))
register(LoRA, ALONE)
register_router(LoRA, LOW_RANK)
