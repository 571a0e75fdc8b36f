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
from torch import Tensor, nn

from trimtab.core.delta import Delta
from trimtab.core.kernel import Kernel, register
from trimtab.core.operator import Base, Operator
from trimtab.core.watch import contiguous_input
from trimtab.methods.lora import LoRA


class LoRALinear(torch.autograd.Function):
    """x (n, in), W (out, in), b (out,) or None, A (r, in) and B (out, r) in fp32 -> y (n, out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        a, b_up = A.to(x.dtype), B.to(x.dtype)
        y = torch.nn.functional.linear(x, W, b)
        down = x @ a.T
        y.addmm_(down, b_up.T, alpha=scale)
        ctx.save_for_backward(x, W, A, B, down)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, down = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, and goes through x Aᵀ too
            down = x @ A.to(x.dtype).T
        dy = dy.contiguous()
        up = (dy @ B.to(dy.dtype)).mul_(ctx.scale)
        dA = (up.T @ x).to(A.dtype) if ctx.needs_input_grad[3] else None
        dB = None
        if ctx.needs_input_grad[4]:  # as (r, out): a tall transpose first is 1.7 times slower
            dB = (down.T @ dy).to(B.dtype).mul_(ctx.scale).T.contiguous()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ W
            dx.addmm_(up, A.to(dx.dtype))
        return dx, None, None, dA, dB, None


def _applies(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """On a plain frozen linear map in the dtype of its input, where dropout is off."""
    if not isinstance(inner, Base) or type(inner.module) is not nn.Linear:
        return False
    module, method = inner.module, delta.method
    return (
        x.dtype == module.weight.dtype
        and type(module.weight) is nn.Parameter  # a quantised or sharded one multiplies by itself
        and not any(p.requires_grad for p in module.parameters(recurse=False))
        and not (method.dropout and delta.training)  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._are_functorch_transforms_active()  # vmap, torch.func.grad
        and _bare(module)
    )


def _bare(module: nn.Module) -> bool:
    """Whether calling the module does nothing but its product."""
    return not (
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or any(hook is not contiguous_input for hook in module._forward_pre_hooks.values())
    )


def _run(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    W, b = inner.module.weight, inner.module.bias
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.is_contiguous() else flat.contiguous()
    method: Any = delta.method
    A, B = method.factors(delta)
    y = LoRALinear.apply(flat, W, b, A, B, method.scale)
    return y.view(*x.shape[:-1], y.shape[-1])


register(LoRA, Kernel("lora-linear", _applies, _run))
