"""Maps that keep their weight as codes: what weight they stand for, and what adapters ask of them.

A library's own function reads its codes where `trimtab.quant` knows it; any other linear map is
probed: the identity gives its matrix. Laws see an ordinary map of (out, in) either way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trimtab.core import parts
from trimtab.core.errors import InputError


def _nothing(module: nn.Module) -> None:
    pass


@dataclass(frozen=True)
class Library:
    """What is known of one library's quantised modules.

    `weight` gives what a module's codes stand for, in the layout of the plain module, and `form`
    what the library calls such codes. `hold` comes before a module computes under adapters,
    `release` when the last of them is gone.
    """

    name: str
    knows: Callable[[nn.Module], bool]
    weight: Callable[[nn.Module], Tensor]
    form: Callable[[nn.Module], str]
    hold: Callable[[nn.Module], None] = _nothing
    release: Callable[[nn.Module], None] = _nothing


_libraries: dict[str, Library] = {}


def register(library: Library) -> None:
    """Offer a library's own way of reading its modules; of one name the last counts."""
    parts.load()
    _libraries[library.name] = library


def library(module: nn.Module) -> Library | None:
    """The one that knows the module."""
    parts.load()
    return next((one for one in _libraries.values() if one.knows(module)), None)


def coded(module: nn.Module) -> bool:
    """Whether the module multiplies by a weight that it keeps as codes."""
    own = module._parameters.get("weight", module._buffers.get("weight"))
    if own is not None:
        return _codes(own)
    packed = "weight" not in module.__dict__ and not module._modules
    return packed and features(module) is not None and any(map(_codes, _own(module)))


def _own(module: nn.Module) -> list[Tensor]:
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def _codes(tensor: Tensor) -> bool:
    """Whether its values are not the numbers that they stand for. One that is spread over processes
    has plain numbers."""
    if hasattr(tensor, "full_tensor"):
        return False
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    return whole or tensor.dtype.itemsize == 1 or is_traceable_wrapper_subclass(tensor)


def features(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear map as it says itself: codes may be packed in any shape."""
    out, inp = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (out, inp) if isinstance(out, int) and isinstance(inp, int) else None


def form(module: nn.Module) -> str | None:
    """What the module's library calls its codes; None of a plain module, and of one not known."""
    known = library(module)
    return None if known is None else known.form(module)


@torch.no_grad()
def weight(module: nn.Module) -> Tensor:
    """The weight that a module's codes stand for, as the plain module would hold it."""
    known = library(module)
    if known is not None:
        return known.weight(module).detach()
    if features(module) is None:
        raise InputError(
            f"{type(module).__name__} keeps its weight as codes of a library that is not known, "
            "and only a linear map can be probed: leave it out"
        )
    return probe(module)


def probe(module: nn.Module) -> Tensor:
    """The matrix (out, in) of a linear map, by feeding it the identity: of any library's."""
    shape, held = features(module), _own(module)
    assert shape is not None
    x = torch.eye(shape[1], dtype=dtype(module), device=held[0].device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        at_zero = module(torch.zeros_like(x[:1]))
        return (module(x) - at_zero).mT.contiguous()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weight and bias of a module that keeps codes, as a plain one would hold them."""
    bias = getattr(module, "bias", None)
    own = {"weight": weight(module)}
    return {**own, "bias": bias} if isinstance(bias, Tensor) else own


def dtype(module: nn.Module) -> torch.dtype:
    """That of the plain numbers which the module keeps beside its codes."""
    return next((t.dtype for t in _own(module) if not _codes(t)), torch.get_default_dtype())


def plain(module: nn.Module) -> nn.Module:
    """The plain module with the weight that the codes stand for."""
    own = {n: nn.Parameter(t.detach().clone(), False) for n, t in tensors(module).items()}
    if features(module) is None:  # an embedding, itself plain, whose weight holds codes
        new = copy.copy(module)
        new._forward_hooks, new._forward_pre_hooks = type(module._forward_hooks)(), {}
    else:
        out, inp = own["weight"].shape
        new = nn.Linear(inp, out, "bias" in own, device="meta")
    new._parameters = {**own}
    return new.train(module.training)


class KeepBias:
    """Before a quantised map: some libraries cast the bias in place to the input's dtype, and what
    they round stays so."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        bias = module._parameters.get("bias")
        if bias is not None and not torch.compiler.is_compiling():
            module.__dict__[_BIAS] = bias.data


class PassGradient:
    """After a quantised map. Where its kernel gives its input no gradient, all that lies before
    would stay untrained in silence: the gradient then goes straight through the weight."""

    def __init__(self) -> None:
        self.passes: bool | None = None  # not known before it is asked for

    def __call__(self, module: nn.Module, args: Any, y: Any) -> Any:
        before, bias = module.__dict__.pop(_BIAS, None), module._parameters.get("bias")
        if before is not None and bias is not None and bias.dtype != before.dtype:
            bias.data = before
        x = args[0] if args else None
        if not (isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()):
            return None
        if self.passes is None and not torch.compiler.is_compiling():
            self.passes = _passes(module, x)
        return _Straight.apply(x, y, module) if self.passes is False else None


def _passes(module: nn.Module, x: Tensor) -> bool:
    """Whether the output, asked once more with one row, hangs together with the input."""
    row = x.detach().reshape(-1, x.shape[-1])[:1].clone().requires_grad_()
    y = module.forward(row)
    return y.requires_grad and torch.autograd.grad(y.sum(), row, allow_unused=True)[0] is not None


_BIAS = "_bias_before"


class _Straight(torch.autograd.Function):
    """y, with the gradient that x W^T would have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.dtype = module, x.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (dy @ weight(ctx.module).to(dy.dtype)).to(ctx.dtype), dy, None


def hold(module: nn.Module) -> None:
    """From now on the module keeps its codes as they are, and passes gradients on."""
    known = library(module)
    if known is not None:
        known.hold(module)
    module.register_forward_pre_hook(KeepBias())
    module.register_forward_hook(PassGradient())


def release(module: nn.Module) -> None:
    """The library may do again what it does; the hooks are dropped with all others."""
    known = library(module)
    if known is not None:
        known.release(module)
