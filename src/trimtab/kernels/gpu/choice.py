"""Which way a product goes is measured, once for each shape, and kept.

No rule knows where one kernel beats a library's two: it depends on the device, the shape and the
rank.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trimtab.core.errors import InputError

Given = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, float]
Product = Callable[..., tuple[Tensor, Tensor]]

_MODES = ("measure", "triton", "torch")
_WARM, _ROUNDS = 3, 10

MODE = os.environ.get("TRIMTAB_GPU", "measure").lower()
if MODE not in _MODES:
    raise InputError(f"TRIMTAB_GPU={MODE}: it is one of {', '.join(_MODES)}")

choices: dict[str, str] = {}
"""A product and its shape -> the way taken; a JSON file holds it as it is."""


def choose(
    name: str, ways: Mapping[str, Product], given: Given, mode: str = MODE
) -> tuple[Tensor, Tensor]:
    """The product by the way that is chosen for `name`, by a measurement where there is none."""
    way = choices.get(name)
    if way is None and _recording():
        way = "torch"
    elif way is None:
        offered = {one: ways[one] for one in ways if one != "torch" or mode == "measure"}
        way = choices[name] = _fastest(offered, given)
    if way not in ways:
        raise InputError(f"choices[{name!r}] is {way!r}, and the ways are {', '.join(ways)}")
    return ways[way](*given)


def _recording() -> bool:
    """While a graph is captured nothing can be waited for."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _fastest(ways: Mapping[str, Product], given: Given) -> str:
    from triton.runtime.errors import OutOfResources

    took = {}
    for name, way in ways.items():
        try:
            took[name] = _seconds(way, given)
        except OutOfResources:  # a tile that this device's shared memory does not hold
            continue
    return min(took, key=lambda name: took[name])


def _seconds(way: Product, given: Given) -> float:
    for _ in range(_WARM):
        way(*given)
    _wait()
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        way(*given)
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
