"""Cross entropy over a large vocabulary that never holds the logits.

    L = log Σ_v exp(z_v) - z_y,   z = h Wᵀ + b,   ∂L/∂h = softmax(z) W - w_y

Rows are taken in chunks, with the gradient of the input computed on the way; rows whose label is
ignored are never multiplied. No gradient of the weights is formed: they are frozen. The input stays
for a second derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from trimtab.core import logits
from trimtab.core.kernel import register_loss
from trimtab.kernels import cpu, gpu
from trimtab.kernels.coded import Coded, of_head
from trimtab.kernels.plain import rows

_CHUNK = 4 << 20  # logits in a chunk: 16 MiB in fp32; an accelerator takes more at once


class CrossEntropy(torch.autograd.Function):
    """h (n, d), W (V, d), b (V,) or None, labels (n,) all within V -> losses (n,) in fp32."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor, b: Tensor | None, labels: Tensor) -> Tensor:
        losses, dh = h.new_empty(len(h), dtype=logits.wide(h.dtype)), torch.empty_like(h)
        step = max(1, (_CHUNK if h.device.type == "cpu" else 16 * _CHUNK) // len(W))
        for part in (slice(first, first + step) for first in range(0, len(h), step)):
            losses[part], dz = _chunk(linear(h[part], W, b), labels[part], ctx.needs_input_grad[0])
            if dz is not None:
                dh[part] = dz @ W
        ctx.save_for_backward(h, W, b, labels, dh)
        return losses

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *given, dh = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, which needs all logits
            dh = gradient(*given)
        return (dh * dy[:, None]).to(dh.dtype), None, None, None  # dy is one number in all rows


def _chunk(z: Tensor, labels: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
    """The losses of logits, which are written over, and with `slopes` ∂L/∂z."""
    if gpu.takes(z):
        return gpu.cross_entropy_(z, labels, slopes), z if slopes else None
    dtype, y = z.dtype, labels[:, None]
    z = z.to(logits.wide(dtype))
    lse = z.logsumexp(-1, keepdim=True)
    losses = (lse - z.gather(-1, y))[:, 0]
    if not slopes:
        return losses, None
    p = z.sub_(lse).exp_()
    return losses, p.scatter_add_(-1, y, torch.full_like(lse, -1.0)).to(dtype)


def gradient(h: Tensor, W: Tensor, b: Tensor | None, labels: Tensor) -> Tensor:
    """∂L/∂h, to be differentiated."""
    p = linear(h, W, b).to(logits.wide(h.dtype)).softmax(-1)
    return (p - one_hot(labels, len(W))).to(W.dtype) @ W


class Int8CrossEntropy(torch.autograd.Function):
    """h (n, d), the head's W (V, d) as codes, labels (n,) -> losses (n,) in fp32."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, coded: Coded, labels: Tensor) -> Tensor:
        (there, back), bias = coded.codes(h), coded.bias
        losses = cpu.floats(len(h))
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        cpu.loaded().trimtab_int8_cross_entropy(
            *(h.data_ptr(), cpu.is_half(h), labels.data_ptr(), *h.shape, there.outputs),
            *cpu.addresses(there.inverse, there.packed, there.scales, bias),
            *cpu.addresses(back.packed, back.scales, losses, dh),
        )
        ctx.save_for_backward(h, labels, dh)
        ctx.coded = coded
        return losses

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        h, labels, dh = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: of the exact product
            head = ctx.coded.module
            dh = gradient(h, head.weight, head.bias, labels)
        return (dh * dy[:, None]).to(dh.dtype), None, None


def loss(h: Tensor, W: Tensor, b: Tensor | None, labels: Tensor) -> Tensor:
    """Cross entropy of a frozen head: in eight bits where `int8` was asked for its model."""
    coded = of_head(W)
    if coded is None or not coded.applies(h):
        y: Tensor = CrossEntropy.apply(h, W, b, labels)
    else:
        y = Int8CrossEntropy.apply(rows(h), coded, labels.to(torch.int64).contiguous())
    return y


register_loss(loss)
