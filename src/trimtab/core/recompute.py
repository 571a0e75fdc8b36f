"""Products with a dense change of a matrix that is made again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trimtab.core.kernel import transformed
from trimtab.core.operator import linear


def product(x: Any, law: Callable[[], Tensor]) -> Tensor:
    """x Wᵀ for W = law(), which must give the same matrix whenever it is asked.

    Autograd would keep W, as large as the frozen weight, at every site until the backward pass;
    here it keeps what W is made of.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or transformed():
        return linear(x, law())
    dtype = _dtype(W := law())
    W = W.to(dtype)
    storage = W.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != storage:
            return tensor
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else law().to(dtype).as_strided(*kept)

    with saved_tensors_hooks(pack, unpack):
        return linear(x, W)


def _dtype(W: Tensor) -> torch.dtype:
    """That of the product: autocast would make a copy, and keep it."""
    device = W.device.type
    casts = W.dtype == torch.float32 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else W.dtype
