"""The methods by name. A class that states its `name` is registered by being imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError, nearest

if TYPE_CHECKING:
    from trimtab.core.method import Method

_methods: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> None:
    known = _methods.get(cls.name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise InputError(f"the method name {cls.name!r} is taken by {known.__qualname__}")
    _methods[cls.name] = cls


def methods() -> dict[str, type[Method]]:
    """Every registered method, by name."""
    return dict(sorted(_methods.items()))


def lookup(name: str) -> type[Method]:
    """The method of this name, or an error with the nearest names."""
    if name not in _methods:
        raise InputError(f"no method is called {name!r}; {nearest(name, sorted(_methods))}")
    return _methods[name]


def build(name: str, arguments: Mapping[str, Any]) -> Method:
    """A method from its name and hyper-parameters, with errors that name what is wrong."""
    cls = lookup(name)
    known = {field.name: field for field in dataclasses.fields(cls)}
    taken = dict(arguments)
    for key, value in arguments.items():
        if key not in known:
            raise InputError(f"{name} has no hyper-parameter {key!r}; {nearest(key, known)}")
        if isinstance(value, list | tuple) and "tuple" in str(known[key].type):
            taken[key] = _tuple(name, key, value)  # files know lists only
        else:
            _check_type(name, key, value, known[key].default)
    return cls(**taken)


def _tuple(name: str, key: str, value: Sequence[Any]) -> tuple[Any, ...]:
    if not all(isinstance(item, str | int | float) for item in value):
        raise InputError(f"{name}: {key} must hold words or numbers only, not {value!r:.60}")
    return tuple(value)


def _check_type(name: str, key: str, value: Any, default: Any) -> None:
    expected = type(default)
    fits = isinstance(value, expected) and isinstance(value, bool) == isinstance(default, bool)
    if expected is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if default is not None and not fits:
        raise InputError(
            f"{name}: {key} must be {expected.__name__} (default {default!r}), not {value!r}"
        )
