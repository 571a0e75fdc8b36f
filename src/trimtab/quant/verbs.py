"""The verbs of quantised bases: `quantise` and `dequantise` a model in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trimtab.codes import decode
from trimtab.core.adapter import carries, unwrap
from trimtab.core.errors import InputError, SiteNotFound, StateError, nearest
from trimtab.core.heads import heads
from trimtab.core.quantised import coded
from trimtab.core.readers import readers
from trimtab.core.walk import walk
from trimtab.place import put
from trimtab.quant import bitsandbytes, torchao

FORMATS: dict[str, tuple[str, Callable[[nn.Linear], nn.Module]]] = {
    "nf4": ("bitsandbytes", bitsandbytes.nf4),
    "int8": ("bitsandbytes", bitsandbytes.int8),
    "torchao-int8": ("torchao", torchao.int8),
    "torchao-int4": ("torchao", torchao.int4),
}
"""Format -> the library that it needs, and what quantises one map."""


def quantise(model: nn.Module, to: str = "nf4", *, skip: Sequence[str] | None = None) -> nn.Module:
    """Quantise the model's linear maps, in place; attach adapters afterwards.

    Args:
        to: "nf4" (4 bits with double quantisation, as QLoRA has it) or "int8", of bitsandbytes;
            "torchao-int8" or "torchao-int4".
        skip: maps that stay as they are, by the end of the name or as a glob; left out, the
            model's heads. Tied maps, those whose weight is read past them, and those that
            transformers keeps in fp32 (T5 casts to the dtype of one) stay always.
    """
    model = unwrap(model)
    _refuse_adapters(model, "quantise")
    make = _format(to)
    left = [*_skipped(model, skip), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    found = [
        (paths, module)
        for paths, module in _linears(model)
        if not any(_named(pattern, path) for pattern in left for path in paths)
    ]
    if not found:
        raise SiteNotFound(
            f"{type(model).__name__} has no linear map to quantise (torch.nn.Linear, not tied, not "
            "quantised already, not skipped); to change its format, `dequantise(model)` first"
        )
    for paths, module in found:
        put(model, paths, make(module))
    return model


def _skipped(model: nn.Module, skip: Sequence[str] | None) -> Sequence[str]:
    """The names of what is left out, each of which must be some module's."""
    if skip is None:
        return heads(model)
    names = [name for name, _ in walk(model, once=False) if name]
    given = [skip] if isinstance(skip, str) else list(skip)
    for pattern in given:
        if not any(_named(pattern, name) for name in names):
            raise SiteNotFound(f"skip: no module is called {pattern!r}; {nearest(pattern, names)}")
    return given


def dequantise(model: nn.Module) -> nn.Module:
    """Put plain maps in the place of the quantised ones, with the weights that their codes stand
    for: those are not the weights from before they were quantised.
    """
    model = unwrap(model)
    _refuse_adapters(model, "dequantise")
    if not decode(model):
        raise StateError(f"{type(model).__name__} has no quantised map")
    return model


def _refuse_adapters(model: nn.Module, verb: str) -> None:
    if carries(model):
        raise StateError(
            f"the model carries adapters: {verb} it before attaching them"
            + (", or `merge(model, dequantise=True)`" if verb == "dequantise" else "")
        )


def _format(to: str) -> Callable[[nn.Linear], nn.Module]:
    if to not in FORMATS:
        raise InputError(f"no format is called {to!r}; {nearest(to, sorted(FORMATS))}")
    library, make = FORMATS[to]
    if importlib.util.find_spec(library) is None:
        raise InputError(
            f"{to} needs {library}, which is not installed: pip install trimtab[quant]"
        )
    return make


def _linears(model: nn.Module) -> Iterator[tuple[list[str], nn.Linear]]:
    """(paths, map) of the plain linear maps whose weight is theirs alone."""
    read = {f"{home}.{name}".lstrip(".") for _, home, name, _ in readers(model)}
    paths: dict[int, list[str]] = {}
    held: dict[int, int] = {}
    for name, module in walk(model, once=False):
        paths.setdefault(id(module), []).append(name)
    for _, module in walk(model):
        for parameter in module.parameters(recurse=False):
            held[id(parameter)] = held.get(id(parameter), 0) + 1
    for name, module in list(walk(model)):
        alone = type(module) is nn.Linear and held[id(module.weight)] == 1 and name
        if alone and not coded(module) and f"{name}.weight" not in read:
            yield paths[id(module)], module


def _named(pattern: str, path: str) -> bool:
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(path, pattern)
    return f".{path}".endswith(f".{pattern}")
