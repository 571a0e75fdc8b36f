"""Compositions of adapters, each a value: what `activate` takes; and what they make of a site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.core import kernel
from trimtab.core.call import Call
from trimtab.core.errors import InputError, StateError
from trimtab.core.method import Combine
from trimtab.core.operator import Known, Operator, Under

if TYPE_CHECKING:
    from trimtab.core.delta import Delta


@dataclass(frozen=True, init=False)
class Stack:
    """Adapters one upon the other: each acts on the map that those before it have made."""

    parts: tuple[Composition, ...]

    def __init__(self, *parts: Composition) -> None:
        object.__setattr__(self, "parts", parts)


def _finite(weight: Any) -> bool:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return number and math.isfinite(weight)


@dataclass(frozen=True, init=False)
class Mix:
    """y' = y + Σ wᵢ (yᵢ - y): the adapters' changes, weighted. `Mix(a=0.7, b=0.3)`."""

    weights: tuple[tuple[str, float], ...]

    def __init__(self, weights: Mapping[str, float] | None = None, /, **named: float) -> None:
        both = {**(weights or {}), **named}
        if not both or not all(map(_finite, both.values())):
            raise InputError(f"Mix takes a number for each adapter, not {both}")
        object.__setattr__(self, "weights", tuple((n, float(w)) for n, w in both.items()))


@dataclass(frozen=True, init=False)
class Route:
    """One of several adapters for each example of a batch: which one the call's `route` says."""

    parts: tuple[str, ...]

    def __init__(self, *parts: str) -> None:
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True, init=False)
class Fuse:
    """Adapters side by side, their outputs put together by the adapter `by`, which learns how."""

    parts: tuple[str, ...]
    by: str

    def __init__(self, *parts: str, by: str) -> None:
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "by", by)


Composition = str | Stack | Mix | Route | Fuse


def order(composition: Composition | None) -> tuple[str, ...]:
    """The adapters of a composition, each as often as it is named, innermost first."""
    return () if composition is None else tuple(_names(composition))


def _names(node: Composition) -> Iterator[str]:
    match node:
        case str():
            yield node
        case Stack(parts=parts) | Route(parts=parts) | Fuse(parts=parts) if not parts:
            raise InputError(f"{type(node).__name__}() names no adapter")
        case Route(parts=parts) | Fuse(parts=parts) if not all(isinstance(p, str) for p in parts):
            raise InputError(f"{type(node).__name__} takes names of adapters, not {parts}")
        case Stack(parts=parts):
            for part in parts:
                yield from _names(part)
        case Mix(weights=weights):
            yield from (name for name, _ in weights)
        case Route(parts=parts):
            yield from parts
        case Fuse(parts=parts, by=by):
            yield from (*parts, by)
        case _:
            raise InputError(
                f"a composition is a name, Stack, Mix, Route, Fuse or None, not {node!r}"
            )


def routes(node: Composition | None) -> bool:
    """Whether a call must say which adapter acts on which example."""
    return isinstance(node, Route) or (isinstance(node, Stack) and any(map(routes, node.parts)))


def plain(data: Composition | None) -> Any:
    """A composition as plain data, for files."""
    match data:
        case None | str():
            return data
        case Stack(parts=parts):
            return {"stack": [plain(part) for part in parts]}
        case Mix(weights=weights):
            return {"mix": dict(weights)}
        case Route(parts=parts):
            return {"route": list(parts)}
        case Fuse(parts=parts, by=by):
            return {"fuse": list(parts), "by": by}


def read(data: Any) -> Composition | None:
    """The inverse of `plain`, of data that may be anything."""
    match data:
        case None | str():
            return data
        case {"stack": [*parts]} if len(data) == 1:
            return Stack(*[read(part) or "" for part in parts])
        case {"mix": dict(weights)} if len(data) == 1:
            return Mix(weights)
        case {"route": [*parts]} if len(data) == 1 and all(isinstance(p, str) for p in parts):
            return Route(*parts)
        case {"fuse": [*parts], "by": str(by)} if all(isinstance(p, str) for p in parts):
            return Fuse(*parts, by=by)
    raise InputError(f"no composition of adapters: {data!r:.80}")


Deltas = Callable[[str], Mapping[str, "Delta"]]
"""The deltas of an adapter at one site, innermost first."""


def over(node: Composition | None, inner: Operator, deltas: Deltas, call: Call) -> Operator:
    """What the active adapters make of `inner` at one site."""
    match node:
        case None:
            return inner
        case str():
            for delta in deltas(node).values():
                if isinstance(delta.method, Combine):
                    inner = Combined(delta, inner, delta.method.over, deltas, call)
                else:
                    inner = Under(delta, inner, call)
            return inner
        case Stack(parts=parts):
            for part in parts:
                inner = over(part, inner, deltas, call)
            return inner
        case Mix(weights=weights):
            acting = [(name, w) for name, w in weights if deltas(name)]
            return Mixed(acting, inner, deltas, call) if acting else inner
        case Route(parts=parts):
            return Routed(parts, inner, deltas, call) if any(map(deltas, parts)) else inner
        case Fuse(by=by):
            return over(by, inner, deltas, call)


class Mixed(Operator):
    """y + Σ wᵢ (yᵢ - y)."""

    def __init__(
        self, weights: list[tuple[str, float]], inner: Operator, deltas: Deltas, call: Call
    ) -> None:
        self.weights, self.inner, self.deltas, self.call = weights, inner, deltas, call
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        known = Known(self.inner, x)
        y = known(x)
        changes = [w * (over(n, known, self.deltas, self.call)(x) - y) for n, w in self.weights]
        return y + sum(changes[1:], changes[0])

    def tensors(self) -> dict[str, Tensor]:
        own = self.inner.tensors()
        mixed = dict(own)
        for name, weight in self.weights:
            for key, tensor in over(name, self.inner, self.deltas, self.call).tensors().items():
                mixed[key] = mixed[key] + weight * (tensor - own[key])
        return mixed


class Routed(Operator):
    """Each example through its own adapter; the base runs once, over all of them, where the laws
    ask for the base's output on their own input."""

    def __init__(self, parts: tuple[str, ...], inner: Operator, deltas: Deltas, call: Call) -> None:
        self.parts, self.inner, self.deltas, self.call = parts, inner, deltas, call
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        route, device = self.call.route, getattr(x, "x", x).device
        batch = x.shape[0] if route is None else self.call.examples(x.shape, self._site())
        groups = self.call.grouped(self.parts, batch)
        stacks = [{} if name is None else self.deltas(name) for name in groups]
        if found := kernel.find_router(stacks, x, self.inner):
            run, deltas = found
            which = self.call.places(self.parts, batch).to(device)
            return run(deltas, which, x, self.inner)
        known, outputs, indices = Known(self.inner, x), [], []
        for name, listed in groups.items():
            index = torch.tensor(listed, device=device)
            some = x[index]
            inner = _Rows(known, index, some)
            if name is None:
                outputs.append(inner(some))
            else:
                call = self.call.part(index, batch)
                outputs.append(over(name, inner, self.deltas, call)(some))
            indices.append(index)
        return torch.cat(outputs)[torch.cat(indices).argsort()]

    def tensors(self) -> dict[str, Tensor]:
        raise StateError(
            "adapters that are routed by example have no one weight: activate one to merge it"
        )

    def _site(self) -> str:
        return next(d.site.name for part in self.parts for d in self.deltas(part).values())


class _Rows(Operator):
    """`inner` on some rows of the batch; on the very rows given, as it gave them for all."""

    inner: Known

    def __init__(self, inner: Known, index: Tensor, x: Tensor) -> None:
        self.inner, self.index, self.x = inner, index, x
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        if x is self.x:
            return self.inner(self.inner.x)[self.index]
        return self.inner.narrowed(self.index, None)(x)

    def narrowed(self, rows: Tensor | None, positions: Tensor | None) -> Operator:
        return self.inner.narrowed(self.index if rows is None else self.index[rows], positions)

    def using(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.inner.narrowed(self.index, None).using(tensors, x)

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()


class Combined(Operator):
    """A learned law over what other adapters make of the same operator."""

    def __init__(
        self, delta: Delta, inner: Operator, parts: tuple[str, ...], deltas: Deltas, call: Call
    ) -> None:
        self.delta, self.inner, self.parts = delta, inner, parts
        self.deltas, self.call = deltas, call
        self.geometry, self.dtype = inner.geometry, inner.dtype

    def __call__(self, x: Tensor) -> Tensor:
        known = Known(self.inner, x)
        y = known(x)
        outputs = [over(part, known, self.deltas, self.call)(x) for part in self.parts]
        method = self.delta.method
        assert isinstance(method, Combine)
        return method.combine(self.delta.values(y.dtype), x, y, outputs, self.call).to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        raise InputError(f"{self.delta.method.name} changes no weights: it cannot be merged")
