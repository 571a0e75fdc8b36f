"""Which base an adapter was made for: shapes and a few values of every parameter.

Values are compared with bf16's tolerance, so that one base read in bf16, fp16 or fp32 is the same
base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import AdapterMismatch
from trimtab.core.sharded import whole
from trimtab.core.walk import base_parameters, shapes

_SAMPLES = 8
_TOLERANCE = 2.0**-7 + 2.0**-10  # one step of bf16, and what four digits leave out
_SMALLEST = 2.0**-23  # two steps of fp16 near zero


def describe(model: nn.Module, replaced: Collection[str], originals: Mapping[str, Tensor]) -> Any:
    """The base's parameters by name: shape and samples; by shape alone `replaced` ones (trained
    whole, and so in the adapter itself) and quantised ones, whose adapters fit the base in any
    precision. `originals` holds what selected parameters were before training.
    """
    own, packed = dict(base_parameters(model)), shapes(model)
    return {
        name: {
            "shape": list(packed.get(name, tuple(parameter.shape))),
            "values": None
            if name in replaced or name in packed
            else _sample(originals.get(name, parameter)),
        }
        for name, parameter in own.items()
    }


def _sample(parameter: Tensor) -> list[float] | None:
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return None
    flat = whole(parameter).reshape(-1)
    at = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel())).long()
    values = flat[at.to(flat.device)].to(torch.bfloat16).float().cpu()
    return [float(f"{value:.4g}") for value in values.tolist()]


def fingerprint(described: Mapping[str, Any]) -> str:
    """A short name for a described base."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def compare(saved: Mapping[str, Any], here: Mapping[str, Any], adapter: str) -> None:
    """Raise `AdapterMismatch` where the bases differ, naming the first parameter that does."""
    missing = [name for name in saved if name not in here]
    extra = [name for name in here if name not in saved]
    if missing or extra:
        what = (
            f"it has no {missing[0]!r}"
            if missing
            else f"its {extra[0]!r} is unknown to the adapter"
        )
        raise AdapterMismatch(_message(adapter, what))
    for name, one in saved.items():
        if one["shape"] != here[name]["shape"]:
            what = f"its {name!r} has shape {here[name]['shape']}, there {one['shape']}"
            raise AdapterMismatch(_message(adapter, what))
    differing = [name for name in saved if not _same(saved[name]["values"], here[name]["values"])]
    if differing:
        what = (
            f"values differ in {len(differing)} of {len(saved)} parameters, first {differing[0]!r}"
        )
        raise AdapterMismatch(_message(adapter, what))


def _message(adapter: str, what: str) -> str:
    return (
        f"adapter {adapter!r} was made for another base than this model: {what}; load the model "
        "that it was trained on, or pass force=True to use it here all the same"
    )


def _same(a: list[float] | None, b: list[float] | None) -> bool:
    if a is None or b is None:
        return True
    if len(a) != len(b):
        return False
    return all(
        abs(x - y) <= _TOLERANCE * max(abs(x), abs(y)) + _SMALLEST
        for x, y in zip(a, b, strict=True)
    )
