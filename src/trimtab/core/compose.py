"""Compositions of adapters, each a value: what `activate` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, init=False)
class Stack:
    """Adapters one upon the other: each acts on the map that those before it have made."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


def order(composition: Stack | str | None) -> tuple[str, ...]:
    """The adapters of a composition, innermost first."""
    if composition is None:
        return ()
    return composition.names if isinstance(composition, Stack) else (composition,)
