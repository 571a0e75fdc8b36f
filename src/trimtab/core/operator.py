"""What lies beneath a law: something to call, that can also give its matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.core import kernel, quantised
from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.site import Geometry, tensors_of

if TYPE_CHECKING:
    from trimtab.core.delta import Delta


class Operator(ABC):
    """A map that a law stands on. `dtype` is that of its weights."""

    geometry: Geometry
    dtype: torch.dtype

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The output for x (…, in); (…) of whole numbers at an embedding."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The module's own tensors by name, in its layout, as what lies here makes them."""

    def using(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """What the base's module computes of x with these tensors in the place of its own: for
        laws over a module that multiplies no matrix, a norm."""
        return self.inner.using(tensors, x)

    inner: Operator

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        """The same map for these rows of the batch, and these positions (rows, k) of each: a block
        takes arguments that depend on them."""
        return self

    @property
    def weight(self) -> Tensor:
        """(out, in), or (out,) of a norm; materialised on demand."""
        return self.geometry.read(self.tensors()["weight"])

    @property
    def bias(self) -> Tensor | None:
        return self.tensors().get("bias")


class Base(Operator):
    """The frozen module itself; `parameter` names the weight where the module reads it itself,
    `extra` is what the module is given beside its input."""

    def __init__(
        self,
        module: nn.Module,
        geometry: Geometry,
        parameter: str | None = None,
        extra: tuple[Sequence[Any], Mapping[str, Any]] = ((), {}),
    ) -> None:
        self.module, self.geometry, self.parameter = module, geometry, parameter
        self.args, self.kwargs = extra

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(x, Patches):
            return x.last(self.module(x.x, *self.args, **self.kwargs))
        # Under a strided input a frozen weight is expanded: see `watch.contiguous_input`.
        x = x if x.is_contiguous() else x.contiguous()
        return self.module(x, *self.args, **self.kwargs)

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        if any(isinstance(one, Tensor) for one in (*self.args, *self.kwargs.values())):
            raise InputError(
                f"{type(self.module).__name__} is given more than its input: no adapter there can "
                "act on some examples alone"
            )
        return self

    def using(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        own = dict(tensors)
        if isinstance(x, Patches):
            return x.last(self.using(tensors, x.x))
        if quantised.coded(self.module):  # another weight stands in no codes
            y = linear(x, self.geometry.read(own["weight"]), own.get("bias"))
            return y if self.geometry.gain == 1 else self.geometry.gain * y
        return functional_call(self.module, own, (x, *self.args), dict(self.kwargs))

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.module, self.parameter)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        if quantised.coded(self.module):
            return quantised.dtype(self.module)
        return next(self.module.parameters()).dtype


class Under(Operator):
    """`inner` as changed by one delta."""

    def __init__(self, delta: Delta, inner: Operator, call: Call) -> None:
        self.delta, self.inner, self.call = delta, inner, call
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        if (rows := self.delta.site.rows) is None:
            return self._law(x, self.inner)
        y = self.inner(x)
        new = self._law(x, Part(self.inner, self.delta.site.geometry, rows, x, y))
        return torch.cat([y[..., : rows[0]], new, y[..., rows[1] :]], dim=-1)

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        if self.geometry.kind == "block":
            raise InputError(
                f"at {self.delta.site.name!r} an adapter that computes some positions only stands "
                f"upon {self.delta.method.name}: let it act on the frozen block itself, innermost"
            )
        return self

    def _law(self, x: Tensor, inner: Operator) -> Tensor:
        fused = kernel.find(self.delta, x, inner)
        if fused is not None:
            return fused(self.delta, x, inner)
        dtype = x.dtype if x.dtype.is_floating_point else self.dtype
        return self.delta.method.forward(self.delta.values(dtype), x, inner, self.call)

    def tensors(self) -> dict[str, Tensor]:
        """In fp32 at least: what is merged is rounded once, when it is written."""
        own = {name: _at_least_fp32(tensor) for name, tensor in self.inner.tensors().items()}
        dtype = next(iter(own.values())).dtype
        method, p, site = self.delta.method, self.delta.values(dtype), self.delta.site
        if site.rows is None:
            return method.rewrite(p, own, self.geometry)
        part = method.rewrite(p, _cut(own, self.geometry, site.geometry, site.rows), site.geometry)
        return _splice(own, part, self.geometry, site.geometry, site.rows)


class Part(Operator):
    """Some rows of a fused map; of the input x its output is known already."""

    def __init__(
        self, inner: Operator, geometry: Geometry, rows: tuple[int, int], x: Tensor, y: Tensor
    ) -> None:
        self.inner, self.geometry, self.rows, self.dtype = inner, geometry, rows, inner.dtype
        self.x, self.y = x, y

    def __call__(self, x: Tensor) -> Tensor:
        y = self.y if x is self.x else self.inner(x)
        return y[..., slice(*self.rows)]

    def tensors(self) -> dict[str, Tensor]:
        return _cut(self.inner.tensors(), self.inner.geometry, self.geometry, self.rows)


def _cut(
    own: Mapping[str, Tensor], whole: Geometry, part: Geometry, rows: tuple[int, int]
) -> dict[str, Tensor]:
    weight = part.store(whole.read(own["weight"])[slice(*rows)])
    return {"weight": weight, **{n: t[slice(*rows)] for n, t in own.items() if n != "weight"}}


def _splice(
    own: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    whole: Geometry,
    part: Geometry,
    rows: tuple[int, int],
) -> dict[str, Tensor]:
    def spliced(old: Tensor, rows_: Tensor) -> Tensor:
        return torch.cat([old[: rows[0]], rows_, old[rows[1] :]])

    weight = spliced(whole.read(own["weight"]), part.read(new["weight"]))
    rest = {name: spliced(old, new[name]) for name, old in own.items() if name != "weight"}
    return {"weight": whole.store(weight), **rest}


class Known(Operator):
    """`inner`, whose output for the very input x is computed once, whoever asks."""

    def __init__(self, inner: Operator, x: Tensor, y: Tensor | None = None) -> None:
        self.inner, self.x, self.y = inner, x, y
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        if x is not self.x:
            return self.inner(x)
        if self.y is None:
            self.y = self.inner(x)
        return self.y

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        return self.inner.narrowed(rows, positions)

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()


class Patches:
    """The input of a convolution as laws see it: one patch a position, channels last.

    `linear(patches, W)` with W (r, in / groups · kernel) is the convolution with W as its kernel.
    """

    def __init__(self, module: Any, x: Tensor) -> None:
        self.module, self.x = module, x
        self.channels = -1 - len(module.kernel_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    def __getitem__(self, index: Tensor) -> Patches:
        return Patches(self.module, self.x[index])

    def last(self, y: Tensor) -> Tensor:
        return y.movedim(self.channels, -1)

    def first(self, y: Tensor) -> Tensor:
        return y.movedim(-1, self.channels)

    def times(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel = weight.reshape(-1, *self.module.weight.shape[1:])
        return self.last(self.module._conv_forward(self.x, kernel, bias))


def linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, the one product of all laws: over floats, over an embedding's whole numbers (whose
    one-hot rows pick columns of W), over the patches of a convolution.
    """
    if isinstance(x, Patches):
        return x.times(weight, bias)
    if not x.is_floating_point():
        y = F.embedding(x, weight.mT)
        return y if bias is None else y + bias
    return F.linear(x if x.is_contiguous() else x.contiguous(), weight, bias)


def multiplied(inner: Operator, x: Any, W: Tensor, b: Tensor | None) -> Tensor:
    """What `inner` would compute of x with this matrix and bias for its own."""
    dtype = x.dtype if x.dtype.is_floating_point else inner.dtype
    y = linear(x, W.to(dtype), None if b is None else b.to(dtype))
    return y if inner.geometry.gain == 1 else inner.geometry.gain * y


def dropout(x: Any, p: float, training: bool) -> Any:
    """Dropout of what a law multiplies; whole numbers have none."""
    if not (p and training):
        return x
    if isinstance(x, Patches):
        return Patches(x.module, F.dropout(x.x, p))
    return F.dropout(x, p) if x.is_floating_point() else x


def part_of(geometry: Geometry, rows: tuple[int, int]) -> Geometry:
    """The geometry of some rows of a map."""
    return replace(geometry, out_features=rows[1] - rows[0])


def _at_least_fp32(tensor: Tensor) -> Tensor:
    if tensor.dtype.itemsize == 1:  # torch promotes no eight-bit floats
        return tensor.float()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
