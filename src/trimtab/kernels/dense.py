"""Laws that change the whole matrix of a linear map: one product with what they make of it.

    y = x W'ᵀ + b,   W' = affine(p, W)
    dx = dy W',      dp = (∂W'/∂p)ᵀ dyᵀ x

A law alone multiplies with W and with its change, forward and backward: five large products, where
these are three, as full fine-tuning has. W' is as large as W; it is made again in the backward pass
and not kept. In half precision W' is rounded as merged weights are, and as full fine-tuning rounds
what it casts down; the masters keep what is too small to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from trimtab.core.delta import Delta
from trimtab.core.kernel import Kernel, register_for_all
from trimtab.core.operator import Base, Operator
from trimtab.core.values import Values
from trimtab.kernels.plain import plain, rows

Matrix = Callable[..., Tensor]


class DenseLinear(torch.autograd.Function):
    """x (n, in), b (out,) or None, and a matrix (out, in) made of tensors -> y (n, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor | None, matrix: Matrix, *of: Tensor) -> Tensor:
        ctx.save_for_backward(x, *of)
        ctx.matrix = matrix
        return linear(x, matrix(*of), b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *of = ctx.saved_tensors
        twice = torch.is_grad_enabled()  # a second derivative is asked for, and goes through these
        own = of if twice else [t.detach().requires_grad_(t.requires_grad) for t in of]
        with torch.enable_grad():
            W = ctx.matrix(*own)
        dy = dy.contiguous()
        dx = dy @ (W if twice else W.detach()) if ctx.needs_input_grad[0] else None
        trained = [t for t, needed in zip(own, ctx.needs_input_grad[3:], strict=True) if needed]
        found = iter(
            torch.autograd.grad(W, trained, dy.T @ x, create_graph=twice, allow_unused=True)
        )
        return dx, None, None, *(next(found) if n else None for n in ctx.needs_input_grad[3:])


def _applies(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """Where dropout is off and the site has something to train."""
    method: Any = delta.method
    return (
        method.dense
        and plain(inner, x)
        and not (method.dropout and delta.training)
        and any(tensor.numel() for tensor in delta.parameters())
    )


def _run(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    W, method, p = inner.module.weight, delta.method, delta.values(x.dtype)
    names = list(p.tensors)

    def matrix(*tensors: Tensor) -> Tensor:
        same = Values(dict(zip(names, tensors, strict=True)), p.training, p.site, p.index, p.total)
        return method.affine(same, W, None)[0]

    if torch.compiler.is_compiling():  # which decides by itself what is kept
        return linear(x, matrix(*p.tensors.values()), inner.module.bias)
    y = DenseLinear.apply(rows(x), inner.module.bias, matrix, *p.tensors.values())
    return y.view(*x.shape[:-1], y.shape[-1])


register_for_all(Kernel("dense-linear", _applies, _run))
