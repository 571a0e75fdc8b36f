"""Plain maps in the place of a model's quantised ones, and the quantised ones again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trimtab.core import quantised, quantiser
from trimtab.core.host import Host
from trimtab.core.walk import plain, walk
from trimtab.place import put


def decode(model: nn.Module) -> dict[str, Any]:
    """Put plain maps in the place of those that keep codes, and return what `encode` puts back."""
    held: dict[str, nn.Module] = {}
    made: dict[int, nn.Module] = {}
    for path, module in list(walk(model, once=False)):
        own = plain(module)
        if quantised.coded(own):
            if id(own) not in made:
                made[id(own)] = quantised.plain(own)
            held[path] = own
            _stand(model, path, made[id(own)])
    return {"modules": held, "marks": quantiser.unmark(model)} if held else {}


def encode(model: nn.Module, before: Mapping[str, Any]) -> None:
    """Undo `decode`."""
    if before:
        for path, module in before["modules"].items():
            _stand(model, path, module)
        quantiser.mark(model, before["marks"])


def _stand(model: nn.Module, path: str, module: nn.Module) -> None:
    there = model.get_submodule(path)
    module.train(there.training)
    if isinstance(there, Host):
        there.stand_on(module)
    else:
        put(model, [path], module)
