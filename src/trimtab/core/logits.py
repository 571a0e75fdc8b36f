"""The logits of a frozen output head, not multiplied out until something asks for numbers.

A language model's loss needs of them one number a position; as tensors they are the largest of a
training step. `F.cross_entropy` of `Logits` goes to a kernel that takes them row by row
(`kernels/cross_entropy.py`), whoever calls it: the model itself, a trainer, a loop of one's own.
Any other use sees the numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils._pytree import tree_map

from trimtab.core import kernel
from trimtab.core.errors import StateError

LEAST = 1024  # classes from which it is worth while

Head = tuple[Tensor, Tensor | None]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision in which a loss is taken."""
    return torch.promote_types(dtype, torch.float32)


class HoldBack:
    """Before the output head: in training its product waits."""

    def __call__(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        h = args[0] if args else None
        return (Hidden(h), *args[1:]) if isinstance(h, Tensor) and _worth(module, h) else None


def _worth(head: Any, h: Tensor) -> bool:
    weights = [head.weight] if head.bias is None else [head.weight, head.bias]
    return (
        kernel.find_loss() is not None
        and head.training
        and torch.is_grad_enabled()
        and h.requires_grad
        and len(head.weight) >= LEAST
        and all(type(w) is nn.Parameter and not w.requires_grad for w in weights)
        and all(w.dtype == h.dtype for w in weights)
        and not torch.compiler.is_compiling()
        and kernel.unmodified(h)
        and not (head._backward_hooks or head._backward_pre_hooks)  # which take real tensors alone
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )


class Waiting(Tensor):
    """A tensor that holds others in the place of numbers. Every use in Python asks the subclass."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What came past Python: functions of autograd's, whose gradient `_Product` takes."""
        args, kwargs = tree_map(_bare, (args, kwargs or {}))
        return function(*args, **kwargs)


class Hidden(Waiting):
    """The head's input, whose product with the head's weights waits."""

    h: Tensor

    @staticmethod
    def __new__(cls, h: Tensor) -> Hidden:
        self: Hidden = Tensor._make_wrapper_subclass(cls, h.shape, dtype=h.dtype, device=h.device)
        self.h = h
        return self

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = function is linear and len(args) == 3 and not kwargs
        if plain and isinstance(args[0], Hidden) and not _trains(*args[1:]):
            return _waiting(args[0].h, (args[1], args[2]))
        args, kwargs = tree_map(_plain, (args, kwargs or {}))
        return function(*args, **kwargs)


def _trains(*tensors: Tensor | None) -> bool:
    """A head may multiply by what it makes of its weight."""
    return any(one is not None and one.requires_grad for one in tensors)


def _plain(one: Any) -> Any:
    if isinstance(one, Logits):
        return one.numbers()
    return one.h if isinstance(one, Hidden) else one


def _bare(one: Any) -> Any:
    """Numbers below autograd."""
    return _plain(one).detach() if isinstance(one, Waiting) else one


class Logits(Waiting):
    """h Wᵀ + b for h (…, d), of shape (…, V); `dtype` is what it was cast to.

    `source` and `of_source` say of which others it is a view: what is written into one shows in
    the others.
    """

    h: Tensor
    head: Head
    known: Tensor | None
    made_of: tuple[int, ...]
    source: Logits | None
    of_source: Callable[[Tensor], Tensor]

    @staticmethod
    def __new__(cls, h: Tensor, head: Head, dtype: torch.dtype | None = None) -> Logits:
        shape = (*h.shape[:-1], len(head[0]))
        self: Logits = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype or h.dtype, device=h.device
        )
        self.h, self.head, self.known, self.source = h, head, None, None
        self.made_of = _versions(self)
        return self

    def numbers(self) -> Tensor:
        """The logits themselves, with their gradient, whoever asks first, and in what precision."""
        if self.known is None:
            with _as_it_was_called(self.h):
                if self.source is None:
                    unchanged(self)
                    self.known = linear(self.h.contiguous(), *self.head)
                else:
                    self.known = self.of_source(self.source.numbers())
        return self.known

    def multiplied(self) -> bool:
        """Whether there are numbers, which may have been written into since."""
        source = self.source
        return self.known is not None or (source is not None and source.multiplied())

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        known = function in _KNOWN and (function is cross_entropy or not kwargs)
        if known and isinstance(args[0], cls) and not args[0].multiplied():
            found = _KNOWN[function](*args, **kwargs)
            if found is not NotImplemented:
                return found
        args, kwargs = tree_map(_plain, (args, kwargs))
        return function(*args, **kwargs)


def _versions(logits: Logits) -> tuple[int, ...]:
    return tuple(one._version for one in (logits.h, *logits.head) if one is not None)


def unchanged(logits: Logits) -> None:
    """What waits must be multiplied by what was there when the head was called."""
    if logits.made_of != _versions(logits):
        raise StateError(
            "the output head's weights or its input were written into since these logits were "
            "made, of which no number was asked before: take the numbers first (logits.detach()), "
            "or call the model within `with trimtab.kernels.disabled()`"
        )


@contextlib.contextmanager
def _as_it_was_called(h: Tensor) -> Iterator[None]:
    """With gradients and without autocast: as it was when the head was called."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(h.device.type, enabled=False),
    ):
        yield


class _Product(torch.autograd.Function):
    """The link from logits to the head's input, for functions of autograd's that are given them."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor, b: Tensor | None, dtype: torch.dtype) -> Logits:
        ctx.save_for_backward(W)
        return Logits(h, (W, b), dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (W,) = ctx.saved_tensors
        return dy.to(W.dtype) @ W, None, None, None


def _waiting(h: Tensor, head: Head, dtype: torch.dtype | None = None) -> Logits:
    made: Logits = _Product.apply(h, *head, dtype or h.dtype)
    return made


def _seen(
    source: Logits,
    h: Callable[[Tensor], Tensor],
    view: Callable[[Tensor], Tensor],
    dtype: torch.dtype | None = None,
) -> Any:
    """A view of logits, or a cast of them; without gradients it would be cut off, and they not."""
    if not torch.is_grad_enabled():
        return NotImplemented
    unchanged(source)
    made = _waiting(h(source.h), source.head, dtype or own(source, "dtype"))
    made.source, made.of_source = source, view
    return made


def own(logits: Logits, name: str) -> Any:
    """A fact of the tensor that needs no numbers."""
    with torch._C.DisableTorchFunctionSubclass():
        return getattr(logits, name)


def _loss(
    logits: Logits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """`F.cross_entropy` of (n, V) and class numbers (n,); anything else takes the numbers."""
    run, dtype = kernel.find_loss(), own(logits, "dtype")
    plain = weight is None and size_average is None and reduce is None and not label_smoothing
    rows = logits.h.ndim == 2 and target.ndim == 1 and dtype == wide(logits.h.dtype)
    if run is None or not plain or not rows:
        return NotImplemented
    unchanged(logits)
    index = (target != ignore_index).nonzero()[:, 0]
    labels = target[index]
    if len(target) != len(logits.h) or not len(index) or not _within(labels, len(logits.head[0])):
        return NotImplemented  # whose error, or whose nan, is torch's own
    h = logits.h if len(index) == len(target) else logits.h[index]
    with torch.autocast(h.device.type, enabled=False):
        each = run(h, *logits.head, labels)
    if reduction == "none":
        return each.new_zeros(len(target)).index_put((index,), each)
    return each.sum() if reduction == "sum" else each.mean()


def _within(labels: Tensor, count: int) -> bool:
    return bool((labels >= 0).all()) and bool((labels < count).all())


def _cast(logits: Logits, dtype: torch.dtype) -> Any:
    if dtype == own(logits, "dtype"):
        return logits
    return _seen(logits, lambda h: h, lambda y: y.to(dtype), dtype)


def _float(logits: Logits) -> Any:
    return _cast(logits, torch.float32)


def _to(logits: Logits, *args: Any) -> Any:
    plain = len(args) == 1 and isinstance(args[0], torch.dtype) and args[0].is_floating_point
    return _cast(logits, args[0]) if plain else NotImplemented


def _shaped(logits: Logits, *shape: Any) -> Any:
    """A view that leaves the vocabulary alone."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    if sizes[-1] != len(logits.head[0]):
        return NotImplemented
    return _seen(logits, lambda h: h.reshape(*sizes[:-1], h.shape[-1]), lambda y: y.reshape(sizes))


def _rows(logits: Logits, index: Any) -> Any:
    """Slices of leading dimensions: `logits[..., :-1, :]`, `logits[:, :-1]`."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is Ellipsis or isinstance(part, slice) for part in parts):
        return NotImplemented
    slices = [part for part in parts if part is not Ellipsis]
    reaches = len(slices) == logits.h.ndim or (Ellipsis in parts and parts[-1] is not Ellipsis)
    if reaches and slices[-1] != slice(None):
        return NotImplemented
    return _seen(logits, lambda h: h[index], lambda y: y[index])


def _same(logits: Logits) -> Logits:
    return logits


def _fact(name: str) -> Callable[..., Any]:
    def fact(logits: Logits, *args: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = getattr(logits, name)
            return found(*args) if callable(found) else found

    return fact


def _of_input(name: str) -> Callable[..., Any]:
    return lambda logits: getattr(logits.h, name)


_KNOWN: dict[Any, Callable[..., Any]] = {
    cross_entropy: _loss,
    Tensor.float: _float,
    Tensor.to: _to,
    Tensor.view: _shaped,
    Tensor.reshape: _shaped,
    Tensor.__getitem__: _rows,
    Tensor.contiguous: _same,
    Tensor.size: _fact("size"),
    Tensor.dim: _fact("dim"),
    Tensor.is_floating_point: _fact("is_floating_point"),
    **{getattr(Tensor, name).__get__: _fact(name) for name in ("shape", "dtype", "device", "ndim")},
    **{getattr(Tensor, n).__get__: _of_input(n) for n in ("requires_grad", "grad_fn")},
}
