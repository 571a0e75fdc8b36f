"""The methods by name. A class that states its `name` is registered by being imported: all that the
package `trimtab.methods` holds, and all that others offer, once a name is looked up.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.core import parts
from trimtab.core.errors import InputError, nearest
from trimtab.core.spelling import unknown

if TYPE_CHECKING:
    from trimtab.core.method import Method

GROUP = parts.METHODS
"""Another package offers its methods under this group of entry points: name = "module:Class"."""

_methods: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> None:
    if not cls.__module__.startswith(f"{parts.METHODS}."):
        parts.load()  # whatever was imported first, a name that is ours is taken
    known = _methods.get(cls.name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise InputError(f"the method name {cls.name!r} is taken by {known.__qualname__}")
    _methods[cls.name] = cls


def methods() -> dict[str, type[Method]]:
    """Every registered method, by name; those of installed packages too."""
    _discover()
    return dict(sorted(_methods.items()))


def lookup(name: str) -> type[Method]:
    """The method of this name, or an error with the nearest names."""
    if name not in _methods:
        _discover()
    if name not in _methods:
        raise InputError(f"no method is called {name!r}; {nearest(name, sorted(_methods))}")
    return _methods[name]


@functools.cache
def _discover() -> None:
    """Load our own, and what installed packages offer; one of those that is broken is named, and
    left out."""
    parts.load()
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            cls = entry.load()
            if getattr(cls, "name", None) != entry.name or _methods.get(entry.name) is not cls:
                raise InputError(f"it offers {cls!r}, which is no method called {entry.name!r}")
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            warnings.warn(
                f"the method {entry.name!r} of the package {package!r} cannot be loaded: {error}",
                stacklevel=3,
            )


def build(name: str, arguments: Mapping[str, Any]) -> Method:
    """A method from its name and hyper-parameters, with errors that name what is wrong."""
    cls = lookup(name)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in arguments.items():
        if key not in known:
            raise InputError(unknown(cls, key, methods().values(), value))
        check(name, known[key], value)
    return cls(**arguments)


def refuse(cls: type[Method], given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Arguments that a method's constructor does not take, by the words of the field."""
    taken = inspect.signature(cls.__init__).parameters
    for key, value in named.items():
        if key not in taken:
            raise InputError(unknown(cls, key, methods().values(), value))
    if given:
        own = ", ".join(key for key in taken if key != "self")
        raise InputError(
            f"{cls.__name__} takes its hyper-parameters by name ({own or 'it has none'}), not "
            f"{given[0]!r:.40} alone"
        )


def frozen(value: Any) -> Any:
    """What files give as a list, hyper-parameters hold as a tuple."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def check(name: str, field: dataclasses.Field[Any], value: Any) -> None:
    """Of the type of its default, and finite; a tuple, where that may be, of words or numbers."""
    value, default = frozen(value), field.default
    if isinstance(value, tuple) and "tuple" in str(field.type):
        if not all(isinstance(item, str | int | float) for item in value):
            raise InputError(
                f"{name}: {field.name} must hold words or numbers only, not {value!r:.60}"
            )
        return
    if value is None and "None" in str(field.type):
        return
    expected = type(default)
    fits = isinstance(value, expected) and isinstance(value, bool) == isinstance(default, bool)
    if expected is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if default is not None and not fits:
        raise InputError(
            f"{name}: {field.name} must be {expected.__name__} (default {default!r}), "
            f"not {value!r:.80}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: {field.name} must be finite, not {value}")
