"""The kernels in Triton, for CUDA devices. Nothing needs them: without Triton, or elsewhere, torch
computes. Triton is imported when the first tensor comes that they take.

`TRIMTAB_GPU` in the environment says how: `measure` (left out) takes for each shape what is faster,
`triton` these kernels wherever they can be, in the fastest of their tiles, `torch` none of them.
`choices` tells what was measured, and what is written there is taken unmeasured. With
`TRITON_INTERPRET=1` Triton runs its kernels on the processor, slowly, for tensors that lie there.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor, nn

from trimtab.kernels.gpu.choice import MODE, Given, Product, choose
from trimtab.kernels.gpu.choice import choices as choices

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_RANKS = 128  # of an update whose (rows, rank) stands in registers beside the tile


@functools.cache
def here() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def takes(x: Tensor, *more: Tensor | None) -> bool:
    """Whether a kernel may read these: numbers in a device's memory, and nobody follows what is
    done with them."""
    return (
        x.device.type == DEVICE
        and MODE != "torch"
        and here()
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and all(one is None or (_numbers(one) and one.device == x.device) for one in (x, *more))
    )


def _numbers(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.dtype in _DTYPES and x.numel() > 0


def product(by_torch: Product, *given: *Given) -> tuple[Tensor, Tensor]:
    """x Wᵀ + b + c (x F₁ᵀ) F₂ᵀ and x F₁ᵀ, in one pass where that is faster than `by_torch`."""
    x, W, b, F1, F2, _ = given
    if not takes(x, W, b, F1, F2) or len(F1) > _RANKS:
        return by_torch(*given)
    from trimtab.kernels.gpu import low_rank as triton_

    with torch.cuda.device_of(x):
        return choose(triton_.name(*given), {"torch": by_torch, **triton_.WAYS}, given)


def routed_(y: Tensor, x: Tensor, which: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """y += (x A_kᵀ) B_kᵀ in place, k = which[n] for each equal part of the rows."""
    from trimtab.kernels.gpu import routed as triton_

    with torch.cuda.device_of(x):
        return triton_.added(y, x, which, A, B)


def cross_entropy_(z: Tensor, labels: Tensor, slopes: bool) -> Tensor:
    """The losses (n,) of logits z (n, V); with `slopes`, z becomes their gradient."""
    from trimtab.kernels.gpu import cross_entropy as triton_

    with torch.cuda.device_of(z):
        return triton_.losses(z, labels, slopes)
