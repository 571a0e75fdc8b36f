"""Where fused implementations of laws are found. A kernel accelerates a law; it never defines it.

`trimtab.kernels` fills this table; `disabled()` and `TRIMTAB_KERNELS=off` fall back to the laws.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.core import parts

if TYPE_CHECKING:
    from trimtab.core.delta import Delta
    from trimtab.core.method import Method
    from trimtab.core.operator import Operator

Run = Callable[["Delta", Tensor, "Operator"], Tensor]


@dataclass(frozen=True)
class Kernel:
    """A fused implementation of one method's law: where it applies, and the call."""

    name: str
    applies: Callable[[Delta, Tensor, Operator], bool]
    run: Run


Grouped = Callable[[Sequence["Delta | None"], Tensor, Tensor, "Operator"], Tensor]


@dataclass(frozen=True)
class Router:
    """One method's law for several adapters at once: `run(deltas, which, x, inner)`, where `which`
    names one of the deltas (None: the base alone) for each equal part of x's rows, in order."""

    name: str
    applies: Callable[[Sequence[Delta | None], Tensor, Operator], bool]
    run: Grouped


Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""Cross entropy of a frozen head: h (n, d), W (V, d), b (V,) or None, labels (n,) -> (n,)."""

_kernels: dict[type[Method], list[Kernel]] = {}
_routers: dict[type[Method], Router] = {}
_general: list[Kernel] = []
_losses: list[Loss] = []
_enabled = os.environ.get("TRIMTAB_KERNELS", "on").lower() not in {"off", "0", "false"}


def register(method: type[Method], kernel: Kernel) -> None:
    """Offer a kernel for this method, not for its subclasses: they may state another law. Those
    registered last are asked first."""
    parts.load()
    _kernels.setdefault(method, []).insert(0, kernel)


def register_for_all(kernel: Kernel) -> None:
    """Offer a kernel that follows from any method's law: where it applies it says itself."""
    parts.load()
    _general.append(kernel)


def register_router(method: type[Method], router: Router) -> None:
    """Offer it for adapters of this very method."""
    parts.load()
    _routers[method] = router


def register_loss(loss: Loss) -> None:
    """Offer it; the one registered last is asked."""
    parts.load()
    _losses.append(loss)


def find_loss() -> Loss | None:
    parts.load()
    return _losses[-1] if _enabled and _losses else None


def find_router(
    stacks: Sequence[Mapping[str, Delta]], x: Tensor, inner: Operator
) -> tuple[Grouped, Sequence[Delta | None]] | None:
    """For the deltas of several adapters at a site: what computes them together, if anything does,
    and what it takes."""
    parts.load()
    if not _enabled or max(map(len, stacks)) > 1:
        return None
    deltas = [next(iter(stack.values()), None) for stack in stacks]
    methods = {type(delta.method) for delta in deltas if delta is not None}
    if len(methods) != 1:
        return None
    router = _routers.get(methods.pop())
    return (router.run, deltas) if router and router.applies(deltas, x, inner) else None


def find(delta: Delta, x: Tensor, inner: Operator) -> Run | None:
    """The first kernel that applies here, or None: then the law itself is evaluated."""
    parts.load()
    if _enabled:
        for kernel in (*_kernels.get(type(delta.method), ()), *_general):
            if kernel.applies(delta, x, inner):
                return kernel.run
    return None


def enabled() -> bool:
    return _enabled


def transformed() -> bool:
    """Within `vmap`, `torch.func.grad` and the like, which look into functions of autograd's."""
    return torch._C._are_functorch_transforms_active()


def unmodified(x: Tensor) -> bool:
    """Whether operations upon x are just what they say: outside of autocast and of transforms."""
    return not torch.is_autocast_enabled(x.device.type) and not transformed()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Evaluate the laws themselves within this block."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
