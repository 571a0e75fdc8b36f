"""Which column of a file is which: by the user's word first, else by the names it usually has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.core.errors import InputError, nearest

KindName = Literal[
    *("text", "label", "words", "tags", "labels", "number", "numbers"),
    *("vectors", "messages", "answers"),
    *("image", "audio", "video", "boxes", "mask", "smiles", "points"),
]

BESIDE = "beside "  # before the name of a column that a task does not know, in a loaded data set


@dataclass(frozen=True)
class Column:
    """What a task asks of its data.

    `name` is the canonical name, the one a loaded data set has; `aliases` are the names it usually
    goes by in files, in order of preference. A column that is not `required` may be absent, and
    its cells may be empty. What each kind holds is told in `trimtab.data.cells`, `media`,
    `regions`, `molecules` and `clouds`. A `label` names a class: splits are made in equal shares of
    each. Rows that differ in an `answer` alone are never parted.
    """

    name: str
    aliases: tuple[str, ...]
    required: bool = True
    kind: KindName = "text"
    answer: bool = False

    def flag(self, found: str) -> str:
        """What tells the command line that this column is the one called `found`."""
        return f"--column {self.name}={found}"


def resolve(
    header: Sequence[str], columns: Sequence[Column], names: Mapping[str, str], where: str
) -> dict[str, int]:
    """Canonical name -> position in `header`. An absent column that is not required is left out.

    Raises `InputError` where a required column is not found, a name in `names` is unknown, or
    the header has the chosen name twice.
    """
    _check_canonical(columns, names)
    named = {
        column.name: _named(header, column, names[column.name], where)
        for column in columns
        if column.name in names
    }
    places = dict(named)
    for column in (c for c in columns if c.name not in named):
        place = _by_alias(header, column, taken=places.values(), where=where)
        if place is not None:
            places[column.name] = place
        elif column.required:
            raise InputError(_not_found(header, column, where) + _given_away(header, column, named))
    return places


def is_named_in(header: Sequence[str], column: Column) -> bool:
    """Whether the header has this column under one of its usual names."""
    known = {name.casefold() for name in (column.name, *column.aliases)}
    return any(name.casefold() in known for name in header)


def _check_canonical(columns: Sequence[Column], names: Mapping[str, str]) -> None:
    known = [column.name for column in columns]
    for name in names:
        if name not in known:
            raise InputError(f"this task has no column {name!r}; {nearest(name, known)}")
    for name, other in ((a, b) for a in names for b in names if a < b and names[a] == names[b]):
        raise InputError(f"{name} and {other} are both said to be the column {names[name]!r}")


def _named(header: Sequence[str], column: Column, name: str, where: str) -> int:
    place = place_of(header, name, where)
    if place is None:
        shown = nearest(name, map(printable, header))
        raise InputError(f"{where} has no column {name!r} ({column.flag(name)}); {shown}")
    return place


def _by_alias(
    header: Sequence[str], column: Column, taken: Collection[int], where: str
) -> int | None:
    for alias in (column.name, *column.aliases):
        place = place_of(header, alias, where)
        if place is not None and place not in taken:
            return place
    return None


def place_of(header: Sequence[str], name: str, where: str) -> int | None:
    """The column of this very name, else the first that differs in case alone."""
    exact = [i for i, other in enumerate(header) if other == name]
    if len(exact) > 1:
        raise InputError(f"{where} has {len(exact)} columns named {name!r}; rename all but one")
    alike = (i for i, other in enumerate(header) if other.casefold() == name.casefold())
    return exact[0] if exact else next(alike, None)


def _not_found(header: Sequence[str], column: Column, where: str) -> str:
    usual = ", ".join(dict.fromkeys((column.name, *column.aliases)))
    found = ", ".join(repr(printable(name)) for name in header)
    return (
        f"{where} has no column for the {column.name} (usual names: {usual}). "
        f"Its columns are {found}; name the right one with {column.flag('NAME')}"
    )


def _given_away(header: Sequence[str], column: Column, named: Mapping[str, int]) -> str:
    """Where another was said to be the column that would have been it."""
    usual = {alias.casefold() for alias in (column.name, *column.aliases)}
    return "".join(
        f"; {header[place]!r} was said to be the {other}"
        for other, place in named.items()
        if header[place].casefold() in usual
    )


def printable(name: str, width: int = 40) -> str:
    """A header's name fit for a message: a file without a header has sentences there."""
    name = name.encode(errors="backslashreplace").decode()
    return name if len(name) <= width else name[: width - 1] + "…"
