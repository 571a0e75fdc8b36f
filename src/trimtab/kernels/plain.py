"""Where a fused implementation may take the place of a frozen linear map and its law."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from trimtab.core.kernel import unmodified
from trimtab.core.logits import HoldBack
from trimtab.core.operator import Base, Operator
from trimtab.core.watch import contiguous_input


class Product:
    """What stands in the place of a linear map's `forward` and is nothing but its product."""


def plain(inner: Operator, x: Tensor) -> TypeGuard[Base]:
    """Whether `inner` is a frozen linear map in the dtype of its input that does nothing but its
    product, outside of autocast and of transforms of functions."""
    if not isinstance(inner, Base) or type(inner.module) is not nn.Linear:
        return False
    module = inner.module
    return (
        x.dtype == module.weight.dtype
        and type(module.weight) is nn.Parameter  # a quantised or sharded one multiplies by itself
        and not any(p.requires_grad for p in module.parameters(recurse=False))
        and unmodified(x)
        and isinstance(module.__dict__.get("forward", module), nn.Module | Product)
        and free_of_hooks(module)
    )


def free_of_hooks(module: nn.Module) -> bool:
    """Whether calling the module does nothing but what its `forward` says."""
    return not (
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(
            hook is not contiguous_input and not isinstance(hook, HoldBack)
            for hook in module._forward_pre_hooks.values()
        )
    )


def rows(x: Tensor) -> Tensor:
    """x (…, in) as (n, in), contiguous."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.is_contiguous() else flat.contiguous()
