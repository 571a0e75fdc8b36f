"""What stands before the input: prompts and prefixes, as the active adapters are composed, and the
masks, positions and caches that make room for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.call import Call, repeated, rows
from trimtab.core.compose import Fuse, Mix, Route, Stack
from trimtab.core.errors import InputError
from trimtab.core.host import Companion
from trimtab.core.method import Prefix, Prompt


def prompts(companion: Companion, batch: int) -> Tensor | None:
    """The rows that the active adapters put before the input of so many examples: (n, d), or
    (batch, n, d)."""

    def of(name: str, call: Call) -> list[Tensor]:
        return [
            delta.method.extend(delta.values(torch.float32), call)
            for delta in companion.of(name).values()
            if isinstance(delta.method, Prompt)
        ]

    return gathered(companion, of, 2, batch)


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
    companion: Companion, of: Callable[[str, Call], list[Tensor]], ndim: int, batch: int
) -> Tensor | None:
    """What the active adapters put in front, one after the other along the last dimension but one.
    Each gives `ndim` dimensions, or one more before them where every example has its own, as it has
    of adapters that are routed."""
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
        each: dict[int, Tensor] = {}
        lengths = {}
        for name, listed in rows(switch.call.route, parts, batch).items():
            call = switch.call.part(torch.tensor(listed), batch)
            found = of(name, call) if name is not None else []
            if not found:
                raise InputError(
                    f"{name!r} puts nothing before the input, and is routed with adapters that do: "
                    "within a batch all examples have a prompt, or none has"
                )
            tensor = _joined(found, ndim)
            lengths[name] = tensor.shape[-2]
            tensor = tensor[None] if tensor.ndim == ndim else tensor
            each |= zip(listed, repeated(tensor, len(listed), "task_ids"), strict=True)
        if len(set(lengths.values())) > 1:
            raise InputError(f"routed prompts have one length, and these differ: {lengths}")
        return [torch.stack([each[row] for row in range(batch)])]

    tensors = collect(switch.composition)
    return _joined(tensors, ndim) if tensors else None


def _joined(tensors: list[Tensor], ndim: int) -> Tensor:
    """One after the other; where one has a tensor an example, all have."""
    if len(tensors) == 1:
        return tensors[0]
    batch = max((tensor.shape[0] for tensor in tensors if tensor.ndim > ndim), default=0)
    if batch:
        lone = [tensor[None] if tensor.ndim == ndim else tensor for tensor in tensors]
        tensors = [repeated(tensor, batch, "task_ids or route") for tensor in lone]
    return torch.cat(tensors, dim=-2)


def flat(mask: Any, facts: Mapping[str, Any], positions: int) -> Any:
    """For a static cache `generate` writes masks out, (batch, 1, queries, keys), before it knows of
    a prompt: the mask (batch, positions) that they came from has what any query may look at."""
    cache = facts.get("past_key_values")
    if not getattr(cache, "is_compileable", False):
        return mask
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    elif all(getattr(cache, "is_sliding", [False])):
        raise InputError(
            "a prompt cannot be put into a static cache that holds nothing but windows: generate "
            "with the dynamic one, which is the default"
        )
    if not isinstance(mask, Tensor) or mask.ndim == 2:
        return mask
    seen = mask[:, 0, :, :positions]
    return (seen if seen.dtype == torch.bool else seen == 0).any(1).long()


def in_front(mask: Any, n: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        what = f"one of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise InputError(f"a prompt extends an attention mask (batch, positions), not {what}")
    return torch.cat([mask.new_ones(mask.shape[0], n), mask], dim=1)


def counted(ids: Tensor, n: int, start: int) -> Tensor:
    """Positions with those of a prompt before them, which count from `start`."""
    first = torch.arange(start, start + n, device=ids.device, dtype=ids.dtype)
    first = first.expand(*ids.shape[:-1], n)
    return torch.cat([first, ids + n], dim=-1)


def lengthen_cache(cache: Any, n: int) -> None:
    """A cache of fixed size was sized for the caller's positions alone."""
    cache = getattr(cache, "self_attention_cache", cache)
    for layer in getattr(cache, "layers", ()):
        if hasattr(layer, "max_cache_len") and not getattr(layer, "is_initialized", True):
            layer.max_cache_len += n
