"""Where fused implementations of laws are found. A kernel accelerates a law; it never defines it.

`trimtab.kernels` fills this table; `disabled()` and `TRIMTAB_KERNELS=off` fall back to the laws.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

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


_kernels: dict[type[Method], list[Kernel]] = {}
_general: list[Kernel] = []
_enabled = os.environ.get("TRIMTAB_KERNELS", "on").lower() not in {"off", "0", "false"}


def register(method: type[Method], kernel: Kernel) -> None:
    """Offer a kernel for this method, not for its subclasses: they may state another law. Those
    registered last are asked first."""
    _kernels.setdefault(method, []).insert(0, kernel)


def register_for_all(kernel: Kernel) -> None:
    """Offer a kernel that follows from any method's law: where it applies it says itself."""
    _general.append(kernel)


def find(delta: Delta, x: Tensor, inner: Operator) -> Run | None:
    """The first kernel that applies here, or None: then the law itself is evaluated."""
    if _enabled:
        for kernel in (*_kernels.get(type(delta.method), ()), *_general):
            if kernel.applies(delta, x, inner):
                return kernel.run
    return None


def enabled() -> bool:
    return _enabled


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Evaluate the laws themselves within this block."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
