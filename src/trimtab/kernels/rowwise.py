"""What stands between the products of a block, in one pass forward and one backward.

    norm         y = w ⊙ (x - μ) / σ + b, with μ the mean of a row, or nothing in RMSNorm
    activation   y = f(a)
    gated        y = f(a) ⊙ b

torch computes RMSNorm in nine passes over memory and SiLU with its gate in two, and twice as many
backward. `rowwise(model)` puts the compiled passes into a model's frozen norms, its activations and
its gated feed-forward blocks. Which modules those are is found by what they compute, not by name;
they compute so in training mode, in bf16, and otherwise as they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core import kernel
from trimtab.core.walk import plain, walk
from trimtab.kernels import cpu
from trimtab.kernels.plain import free_of_hooks

_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {  # as the C++ numbers them
    0: F.silu,
    1: F.gelu,
    2: lambda x: F.gelu(x, approximate="tanh"),
}
_ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")
_EPS = ("eps", "variance_epsilon")
_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")


class _Pass:
    """In the place of a module's `forward`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def as_given(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def applies(self, x: Any) -> bool:
        return (
            isinstance(x, Tensor)
            and self.module.training
            and kernel.enabled()
            and x.dtype == torch.bfloat16
            and cpu.real(x)
            and kernel.unmodified(x)
        )


class Norm(_Pass):
    """Of a LayerNorm or an RMSNorm that does not train."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.centred = isinstance(module, nn.LayerNorm)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        w, b = self.module._parameters["weight"], self.module._parameters.get("bias")
        frozen = all(one is None or _frozen(one) for one in (w, b))
        if kwargs or len(args) != 1 or not (frozen and self.applies(args[0]) and cpu.real(w, b)):
            return self.as_given(*args, **kwargs)
        return NormFunction.apply(args[0], w, b, _eps(self.module), self.centred)


class Activation(_Pass):
    """Of a module that is a function of each number."""

    def __init__(self, module: nn.Module, kind: int) -> None:
        super().__init__(module)
        self.kind = kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not self.applies(args[0]):
            return self.as_given(*args, **kwargs)
        return ActivationFunction.apply(args[0], None, self.kind)


class Gated(_Pass):
    """Of a block that is `down_proj(act_fn(gate_proj(x)) * up_proj(x))`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module
        own = module.act_fn.__dict__.get("forward")
        simple = isinstance(own, Activation) and free_of_hooks(module.act_fn)
        if kwargs or len(args) != 1 or not (simple and self.applies(args[0])):
            return self.as_given(*args, **kwargs)
        gate, up = module.gate_proj(args[0]), module.up_proj(args[0])
        if gate.shape != up.shape or not (own.applies(gate) and self.applies(up)):
            return module.down_proj(module.act_fn(gate) * up)
        return module.down_proj(ActivationFunction.apply(gate, up, own.kind))


class NormFunction(torch.autograd.Function):
    """x (…, n), w (n,), b (n,) or None -> y (…, n)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, eps: float, centred: bool
    ) -> Tensor:
        x, n = x.contiguous(), x.shape[-1]
        rows = x.numel() // n
        y, mean, inverse = torch.empty_like(x), cpu.floats(rows), cpu.floats(rows)
        gain, offset = _floats(w), None if b is None else _floats(b)
        given, found = cpu.addresses(x, gain, offset), cpu.addresses(y, mean, inverse)
        cpu.loaded().trimtab_norm(*given, rows, n, eps, centred, *found)
        ctx.save_for_backward(x, w, mean, inverse)
        ctx.facts = eps, centred
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, w, mean, inverse), (eps, centred) = ctx.saved_tensors, ctx.facts
        if torch.is_grad_enabled():  # a second derivative is asked for
            return (
                *_again(lambda x: normed(x, w, None, eps, centred), dy, x),
                None,
                None,
                None,
                None,
            )
        dy, gain, dx = dy.contiguous(), _floats(w), torch.empty_like(x)
        sizes = len(mean), x.shape[-1], centred
        given, found = cpu.addresses(x, gain, dy), cpu.addresses(mean, inverse, dx)
        cpu.loaded().trimtab_norm_backward(*given, *sizes, *found)
        return dx, None, None, None, None


class ActivationFunction(torch.autograd.Function):
    """a (…) and b (…) or None -> f(a) ⊙ b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, kind: int) -> Tensor:
        a, b = a.contiguous(), None if b is None else b.contiguous()
        y = torch.empty_like(a)
        given = cpu.addresses(a, b)
        cpu.loaded().trimtab_activation(kind, *given, a.numel(), y.data_ptr())
        ctx.save_for_backward(a, b)
        ctx.kind = kind
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        if torch.is_grad_enabled():
            f = _ACTIVATIONS[ctx.kind]
            if b is None:
                return *_again(f, dy, a), None, None
            return *_again(lambda a, b: f(a) * b, dy, a, b), None
        dy, da = dy.contiguous(), torch.empty_like(a)
        db = None if b is None else torch.empty_like(a)
        given, found = cpu.addresses(a, b, dy), cpu.addresses(da, db)
        cpu.loaded().trimtab_activation_backward(ctx.kind, *given, a.numel(), *found)
        return da, db, None


def normed(x: Tensor, w: Tensor, b: Tensor | None, eps: float, centred: bool) -> Tensor:
    """The law of a norm, in fp32."""
    x_ = x.float()
    x_ = x_ - x_.mean(-1, keepdim=True) if centred else x_
    n = x_ * torch.rsqrt(x_.square().mean(-1, keepdim=True) + eps)
    return (n * w.float() + (0.0 if b is None else b.float())).to(x.dtype)


def _again(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of inputs, of which two may be one tensor, to be differentiated in turn."""
    needed = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*needed), needed, dy, create_graph=True)


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


def _frozen(x: Tensor) -> bool:
    return type(x) is nn.Parameter and not x.requires_grad


def rowwise(model: nn.Module, on: bool = True) -> int:
    """Let a model's frozen norms, its activations and gated blocks compute in one pass in training
    mode from now on; `on=False` takes it back. Returns how many modules do: none where the compiled
    kernels, or the processor's instructions for them, are not."""
    on_here = on and kernel.enabled() and cpu.has("rowwise")
    count = 0
    for module in _inside_out(model):
        if isinstance(module.__dict__.get("forward"), _Pass):
            if not on:
                del module.forward
        elif on_here and "forward" not in module.__dict__ and (found := _pass(module)) is not None:
            module.forward = found  # type: ignore[method-assign]
        count += isinstance(module.__dict__.get("forward"), _Pass)
    return count


def _inside_out(model: nn.Module) -> Iterator[nn.Module]:
    """Activations before the blocks that hold them."""
    for _, held in reversed(list(walk(model))):
        yield plain(held)


@torch.no_grad()
def _pass(module: nn.Module) -> _Pass | None:
    if all(hasattr(module, name) for name in _GATED):
        return Gated(module) if _is_gated(module) else None
    if module._modules:
        return None
    if isinstance(module._parameters.get("weight"), nn.Parameter):
        return Norm(module) if _is_norm(module) else None
    if type(module).__module__ in _ACTIVATION_MODULES and not module._parameters:
        x = torch.linspace(-5, 5, 41)
        for kind, f in _ACTIVATIONS.items():
            if torch.allclose(module(x), f(x), atol=1e-5):
                return Activation(module, kind)
    return None


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm over its last dimension with a gain for each column, by a try."""
    w, b, eps = module._parameters["weight"], module._parameters.get("bias"), _eps(module)
    if w is None or w.dim() != 1 or not isinstance(eps, float) or not cpu.real(w, b):
        return False
    if module._buffers or set(module._parameters) - {"weight", "bias"}:  # BatchNorm would learn
        return False
    x = torch.linspace(-2, 3, 3 * len(w), dtype=w.dtype).cos().view(3, -1) + 0.25
    try:
        y = type(module).forward(module, x)
    except (TypeError, RuntimeError, ValueError):  # it takes something else than rows
        return False
    law = normed(x, w, b, eps, isinstance(module, nn.LayerNorm))
    return y.shape == law.shape and torch.allclose(y.float(), law.float(), rtol=0.03, atol=1e-3)


def _eps(module: nn.Module) -> Any:
    return next((getattr(module, name) for name in _EPS if hasattr(module, name)), None)


def _is_gated(module: Any) -> bool:
    """Whether it computes what its parts say, by a try in evaluation mode."""
    own = module.act_fn.__dict__.get("forward") if isinstance(module.act_fn, nn.Module) else None
    gate = getattr(plain(module.gate_proj), "weight", None)
    if not isinstance(own, Activation) or not isinstance(gate, Tensor) or gate.dim() != 2:
        return False
    training = [part for part in module.modules() if part.training]
    x = torch.linspace(-1, 1, 2 * gate.shape[-1], dtype=gate.dtype, device=gate.device).view(2, -1)
    try:
        for part in training:
            part.training = False
        y = type(module).forward(module, x)
        law = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
        return torch.equal(y, law)
    except (TypeError, RuntimeError, ValueError):  # it takes something else than rows
        return False
    finally:
        for part in training:
            part.training = True
