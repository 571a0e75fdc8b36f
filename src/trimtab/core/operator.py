"""What lies beneath a law: something to call, that can also give its matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core import kernel
from trimtab.core.site import Geometry

if TYPE_CHECKING:
    from trimtab.core.delta import Delta


class Operator(Protocol):
    """An affine map (or a norm) that a law stands on.

    `weight` is (out, in), or (out,) for a norm, and is materialised on demand.
    """

    def __call__(self, x: Tensor) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...


class Base(Operator):
    """The frozen module itself."""

    def __init__(self, module: nn.Module, geometry: Geometry) -> None:
        self.module, self.geometry = module, geometry

    def __call__(self, x: Tensor) -> Tensor:
        # Under a strided input a frozen weight is expanded: see `watch.contiguous_input`.
        return self.module(x if x.is_contiguous() else x.contiguous())

    @property
    def weight(self) -> Tensor:
        return self.geometry.read(self.module.weight)  # type: ignore[arg-type]

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


class Under(Operator):
    """`inner` as changed by one delta."""

    def __init__(self, delta: Delta, inner: Operator) -> None:
        self.delta, self.inner = delta, inner

    def __call__(self, x: Tensor) -> Tensor:
        fused = kernel.find(self.delta, x, self.inner)
        if fused is not None:
            return fused(self.delta, x, self.inner)
        return self.delta.method.forward(self.delta.values(x.dtype), x, self.inner)

    @property
    def weight(self) -> Tensor:
        return self._affine()[0]

    @property
    def bias(self) -> Tensor | None:
        return self._affine()[1]

    def _affine(self) -> tuple[Tensor, Tensor | None]:
        """In fp32 at least: what is merged is rounded once, when it is written."""
        weight, bias = self.inner.weight, self.inner.bias
        dtype = torch.promote_types(weight.dtype, torch.float32)
        b = None if bias is None else bias.to(dtype)
        return self.delta.method.affine(self.delta.values(dtype), weight.to(dtype), b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b over a contiguous x: see `Base.__call__`."""
    return F.linear(x if x.is_contiguous() else x.contiguous(), weight, bias)
