"""Which method is held to which law on which architecture: all pairs, not all triples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

M = TypeVar("M")
L = TypeVar("L")
A = TypeVar("A")


def rotate(
    methods: Sequence[M], laws: Sequence[L], architectures: Sequence[A]
) -> list[tuple[M, L, A]]:
    """A Latin square: every method meets every law once, on architectures in turn."""
    return [
        (method, law, architectures[(row + column) % len(architectures)])
        for row, method in enumerate(methods)
        for column, law in enumerate(laws)
    ]


def cover(
    methods: Iterable[M], laws: Iterable[L], architectures: Iterable[A]
) -> list[tuple[M, L, A]]:
    """Triples such that every method meets every law, every law every architecture and every
    method every architecture.

    The Latin square is completed where there are fewer methods or laws than architectures.
    """
    ms, ls, as_ = list(methods), list(laws), list(architectures)
    if not (ms and ls and as_):
        return []
    triples = rotate(ms, ls, as_)
    met = {(law, a) for _, law, a in triples}
    spare = [(law, a) for law in ls for a in as_ if (law, a) not in met]
    triples += [(ms[index % len(ms)], law, a) for index, (law, a) in enumerate(spare)]
    seen = {(m, a) for m, _, a in triples}
    rest = [(m, a) for m in ms for a in as_ if (m, a) not in seen]
    return triples + [(m, ls[index % len(ls)], a) for index, (m, a) in enumerate(rest)]
