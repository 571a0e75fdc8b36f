"""Laws that change the whole matrix of a linear map: one product with what they make of it.

    y = x W'ᵀ + b',   (W', b') = affine(p, W, b)
    dx = dy W',       dp = (∂W'/∂p)ᵀ dyᵀ x + (∂b'/∂p)ᵀ Σ dy

A law alone multiplies with W and with its change, forward and backward: five large products, where
these are three, as full fine-tuning has. W' is as large as W; it is made again in the backward pass
and not kept.
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

Law = Callable[..., tuple[Tensor, Tensor | None]]


class DenseLinear(torch.autograd.Function):
    """x (n, in), and tensors that make a matrix (out, in) and a bias (out,) -> y (n, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, law: Law, *of: Tensor) -> Tensor:
        ctx.save_for_backward(x, *of)
        ctx.law = law
        return linear(x, *law(*of))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *of = ctx.saved_tensors
        twice = torch.is_grad_enabled()  # a second derivative is asked for, and goes through these
        own = of if twice else [t.detach().requires_grad_(t.requires_grad) for t in of]
        with torch.enable_grad():
            W, b = ctx.law(*own)
        dy, needed = dy.contiguous(), ctx.needs_input_grad[2:]
        dx = dy @ (W if twice else W.detach()) if ctx.needs_input_grad[0] else None
        trained = [t for t, need in zip(own, needed, strict=True) if need]
        made = [one for one in (W, b) if trained and one is not None and one.requires_grad]
        found: tuple[Tensor | None, ...] = ()
        if made:  # an adapter may be frozen, beneath one that trains
            slopes = [dy.T @ x if one is W else dy.sum(0) for one in made]
            found = torch.autograd.grad(
                made, trained, slopes, create_graph=twice, allow_unused=True
            )
        each = iter(found)
        return dx, None, *(next(each, None) if need else None for need in needed)


def _applies(delta: Delta, x: Tensor, inner: Operator) -> bool:
    """Where dropout is off and the site has something to train. In half precision the sum of W and
    a small change is W again, and the law, which multiplies by each, tells more.
    """
    method = delta.method
    return (
        x.dtype.itemsize >= 4
        and method.dense
        and plain(inner, x)
        and not (delta.training and getattr(method, "dropout", False))
        and any(tensor.numel() for tensor in delta.parameters())
    )


def _run(delta: Delta, x: Tensor, inner: Operator) -> Tensor:
    assert isinstance(inner, Base)
    method, p = delta.method, delta.values(x.dtype)
    module: Any = inner.module
    names = list(p.tensors)

    def law(*tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        same = dict(zip(names, tensors, strict=True))
        facts = (p.training, p.site, p.index, p.total, p.shared)
        return method.affine(Values(same, *facts), module.weight, module.bias)

    if torch.compiler.is_compiling():  # which decides by itself what is kept
        return linear(x, *law(*p.tensors.values()))
    y = DenseLinear.apply(rows(x), law, *p.tensors.values())
    return y.view(*x.shape[:-1], y.shape[-1])


register_for_all(Kernel("dense-linear", _applies, _run))
