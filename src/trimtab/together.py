"""Which adapters can act together, and which of them train."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from trimtab.core.adapter import Adapter, Record, intact, record
from trimtab.core.compose import Composition, Fuse, Mix, Route, Stack, order
from trimtab.core.errors import InputError, StateError
from trimtab.core.method import Combine, Prefix, Prompt
from trimtab.methods.whole import Whole

_EXPERT = re.compile(r"(?<!shared_)expert", re.IGNORECASE)  # one that all share sees every token


def composed(model: nn.Module, composition: Composition | None) -> tuple[str, ...]:
    """The adapters of a composition, once it is known that they can act together now."""
    record_ = record(model)
    names = order(composition)
    adapters = [record_.adapter(name) for name in names]
    if record_.switch.merged:
        raise StateError("the model is merged: unmerge it before activating another adapter")
    intact(model, [*adapters, *record_.acting()])
    _refuse(composition, names, record_)
    return names


def _refuse(composition: Composition | None, names: Sequence[str], record_: Record) -> None:
    """What cannot act together."""
    adapters = [record_.adapters[name] for name in names]
    if len(set(names)) < len(names):
        raise InputError(f"an adapter acts once in a composition, not twice: {tuple(names)}")
    selections = [adapter for adapter in adapters if adapter.selection is not None]
    if len(selections) > 1:
        raise InputError("of adapters that change the base's own parameters only one can be active")
    if selections and not isinstance(composition, str | Stack):
        raise InputError(
            f"{selections[0].name!r} changes the base's own parameters, which are the same for "
            f"all: it cannot be one part of a {type(composition).__name__}"
        )
    if isinstance(composition, Mix):
        _refuse_to_mix(adapters)
    for name in _routed(composition):
        _refuse_to_route(record_.adapters[name])
    if isinstance(composition, Stack):
        _refuse_two_heads(adapters)
    for fuse in _fuses(composition):
        over = record_.adapter(fuse.by).over
        if set(over) != set(fuse.parts):
            raise InputError(f"{fuse.by!r} combines {over or 'nothing'}, not {fuse.parts}")


def _routed(node: Any) -> Iterator[str]:
    if isinstance(node, Route):
        yield from node.parts
    for part in getattr(node, "parts", ()):
        yield from _routed(part)


def _refuse_to_mix(adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        for site, method in adapter.entries:
            if isinstance(method, Prompt | Prefix):
                raise InputError(
                    f"{adapter.name!r} has a {method.name} at {site!r}, and what stands before the "
                    "input cannot be mixed: use Stack or Route"
                )


def _refuse_to_route(adapter: Adapter) -> None:
    for name, delta in adapter.deltas():
        why = "its layers keep positions before examples"
        if _EXPERT.search(name):
            why = "an expert is called with the tokens that a router chose, not with examples"
        elif delta.site.batch_first:
            if delta.site.parameter is None:
                continue
            why = "the module there reads its weight itself, once for all examples"
        raise InputError(f"{adapter.name!r} cannot be routed by example at {name!r}: {why}")


def _fuses(node: Any) -> Iterator[Fuse]:
    if isinstance(node, Fuse):
        yield node
    for part in getattr(node, "parts", ()):
        yield from _fuses(part)


def only_combined(composition: Composition | None, record_: Record) -> set[str]:
    """Adapters that act as parts of another, which leaves them as they are."""
    frozen: set[str] = set()
    for fuse in _fuses(composition):
        methods = [method for _, method in record_.adapter(fuse.by).entries]
        if not any(isinstance(m, Combine) and m.trains_parts for m in methods):
            frozen |= set(fuse.parts)
    return frozen


def _refuse_two_heads(adapters: Sequence[Adapter]) -> None:
    """A module trained whole replaces what lies beneath it, and so stands alone at its site."""
    owner: dict[str, tuple[Adapter, str]] = {}
    for adapter in adapters:
        for site, method in adapter.entries:
            other, kind = owner.get(site, (adapter, ""))
            if other is not adapter and Whole.name in (kind, method.name):
                raise InputError(
                    f"{site!r} is trained whole by one adapter of the stack, and another acts "
                    "there too"
                )
            owner[site] = (adapter, method.name)
