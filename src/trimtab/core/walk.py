"""Going over a model without its deltas: what is done here does not grow with the number of
adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from trimtab.core import quantised
from trimtab.core.host import Deltas, Host


def plain(module: nn.Module) -> nn.Module:
    """The base's own module, whether or not a host stands in its place."""
    return module.base if isinstance(module, Host) else module


def walk(model: nn.Module, *, once: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the model and all beneath it, hosts as they stand, deltas left out; each
    module once, or at every place where it hangs."""
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        name, module = todo.pop()
        if once and id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        for key, child in reversed(module._modules.items()):
            if child is not None and not isinstance(child, Deltas):
                todo.append((f"{name}.{key}" if name else key, child))


def at(model: nn.Module, path: str) -> nn.Module:
    """`get_submodule` for a path that is known to be there, ten times as fast."""
    for key in path.split(".") if path else ():
        child = model._modules[key]
        assert child is not None
        model = child
    return model


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of the base, each once."""
    seen: set[int] = set()
    for name, module in walk(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{name}.{key}" if name else key), parameter


def coded(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, base's module) of those that keep their weights as codes, each once."""
    for name, module in walk(model):
        if quantised.coded(plain(module)):
            yield name, plain(module)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights that are kept as codes, and the shapes of what they stand for."""
    found = {}
    for name, module in coded(model):
        own = module._parameters.get("weight")
        if own is not None:
            key = f"{name}.weight".lstrip(".")
            found[key] = quantised.features(module) or tuple(own.shape)
    return found
