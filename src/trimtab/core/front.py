"""What stands before the input: prompts and prefixes, as the active adapters are composed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.compose import Fuse, Mix, Route, Stack, rows
from trimtab.core.errors import InputError
from trimtab.core.host import Companion
from trimtab.core.method import Prefix, Prompt


def prompts(companion: Companion) -> Tensor | None:
    """The rows that the active adapters put before the input: (n, d) or (batch, n, d)."""

    def of(name: str, call: Call) -> list[Tensor]:
        return [
            delta.method.extend(delta.values(torch.float32), call)
            for delta in companion.of(name).values()
            if isinstance(delta.method, Prompt)
        ]

    return gathered(companion, of) if companion.acts() else None


def positions(attention: list[Companion]) -> int:
    """How many positions the active prefixes of a stack take."""
    each: dict[str, int] = {}
    for companion in attention:
        for name in companion.switch.active if companion.acts() else ():
            for delta in companion.of(name).values():
                if isinstance(delta.method, Prefix):
                    each[name] = max(each.get(name, 0), delta.method.positions)
    return _taken(attention[0].switch.composition, each) if each else 0


def _taken(node: Any, each: Mapping[str, int]) -> int:
    match node:
        case Stack(parts=parts):
            return sum(_taken(part, each) for part in parts)
        case Route(parts=parts):
            return max((each.get(part, 0) for part in parts), default=0)
    return each.get(node, 0) if isinstance(node, str) else 0


def gathered(
    companion: Companion, of: Callable[[str, Call], list[Tensor]], dim: int = -2
) -> Tensor | None:
    """What the active adapters put in front, one after the other along `dim`; of routed ones each
    example has its own, in a first dimension."""
    switch = companion.switch

    def collect(node: Any) -> list[Tensor]:
        match node:
            case None:
                return []
            case str():
                return of(node, switch.call)
            case Stack(parts=parts):
                return [tensor for part in parts for tensor in collect(part)]
            case Route(parts=parts):
                return _routed(parts)
            case Mix(weights=weights):
                named = [name for name, _ in weights]
            case Fuse(parts=named):
                pass
        if any(of(name, switch.call) for name in named):
            raise InputError(
                f"prompts and prefixes stand one before the other: {type(node).__name__} cannot "
                "put them together; use Stack or Route"
            )
        return []

    def _routed(parts: tuple[str, ...]) -> list[Tensor]:
        if not any(of(name, switch.call) for name in parts):
            return []
        route = switch.call.route
        rows(route, parts, len(route or ()))  # refuses what is not there
        each = {}
        for name in set(route or ()):
            found = of(name, switch.call) if name is not None else []
            if not found:
                raise InputError(
                    f"{name!r} puts nothing before the input, and is routed with adapters that do: "
                    "within a batch all examples have a prompt, or none has"
                )
            each[name] = torch.cat(found, dim)
        if len({tensor.shape for tensor in each.values()}) > 1:
            shapes = {name: tensor.shape[dim] for name, tensor in each.items()}
            raise InputError(f"routed prompts have one length, and these differ: {shapes}")
        return [torch.stack([each[name] for name in route or ()])]

    tensors = collect(switch.composition)
    if not tensors:
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
