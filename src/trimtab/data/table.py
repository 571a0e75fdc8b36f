"""What every reader gives: a table, whose columns are there when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """Why one row cannot be used; `line` is the line of the file on which the row begins."""

    line: int
    reason: str


@dataclass(frozen=True)
class Table:
    """A file or split as read. `column(i)` gives the i-th column, one value for each of `lines`.

    `places` are the folders in which files that the cells name are looked for, in this order;
    `names` what people know the rows by, where that is not their line.
    """

    where: str
    header: tuple[str, ...]
    column: Callable[[int], Sequence[object]]
    lines: Sequence[int]
    faults: tuple[Fault, ...] = ()
    unit: str = "line"
    places: tuple[Path, ...] = ()
    names: Sequence[str] = ()


Reader = Callable[[bytes, str], Table]


def of_rows(
    where: str,
    header: tuple[str, ...],
    rows: Sequence[tuple[int, Sequence[object]]],
    faults: Sequence[Fault] = (),
    **facts,
) -> Table:
    """The table of rows that are at hand, each with its line."""
    lines = [line for line, _ in rows]
    return Table(
        where, header, lambda i: [row[i] for _, row in rows], lines, tuple(faults), **facts
    )


def decode(data: bytes) -> str:
    """UTF-8 without its byte order mark; each byte that is none becomes a lone surrogate, which
    spoils its own row alone."""
    return data.decode("utf-8-sig", errors="surrogateescape")


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
