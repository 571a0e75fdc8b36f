"""A table -> rows that hold what the task asks for, and the faults of those that do not."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

from trimtab.core.errors import InputError
from trimtab.data.columns import BESIDE, Column, place_of, resolve
from trimtab.data.kinds import KINDS, agree, read
from trimtab.data.table import Fault, Table

SHOWN = 5  # faults quoted in a message

Ask = Callable[[Mapping[str, Any]], str | None]  # a row -> why it cannot be used, if it cannot


@dataclass(frozen=True)
class Rows:
    """Checked rows: canonical name -> cells; `lines` says where each came from, `kinds` what the
    columns hold where it is not text, `found` how the file calls them, `header` all that it has.
    """

    where: str
    columns: dict[str, list[Any]]
    lines: list[int]
    faults: tuple[Fault, ...] = ()
    unit: str = "line"
    kinds: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def kind(self, name: str) -> str:
        return self.kinds.get(name, "text")

    def labels(self, name: str) -> list[tuple[str, ...]]:
        """The labels that each row has in this column: one, several, or none."""
        of = KINDS[self.kind(name)].labels or (lambda cell: (cell,))
        return [of(cell) for cell in self.columns[name]]

    def keep(self, chosen: Sequence[bool], faults: Sequence[Fault] = ()) -> Rows:
        """The rows that are `chosen`, with the faults, if any, of those that are not."""
        columns = {name: list(compress(cells, chosen)) for name, cells in self.columns.items()}
        lines = list(compress(self.lines, chosen))
        return replace(self, columns=columns, lines=lines, faults=tuple(faults))

    def only(self, names: Container[str]) -> Rows:
        """Fewer columns of the same rows."""
        columns = {name: cells for name, cells in self.columns.items() if name in names}
        return replace(self, columns=columns)


def clean(
    table: Table,
    columns: Sequence[Column],
    names: Mapping[str, str],
    fault: Ask | None = None,
    beside: Sequence[str] = (),
) -> Rows:
    """The table's rows under the canonical names; a row with a bad cell becomes a fault, and so
    does one whose cells do not go together by the word of `fault`. Columns `beside` them, which the
    task does not know, are handed on as they are written, where the table has them.

    Raises `InputError` where a required column is missing (see `columns.resolve`).
    """
    places = resolve(table.header, columns, names, table.where) if table.lines else {}
    wanted = [column for column in columns if column.name in places]
    cells = [read(column, table.column(places[column.name]), table.places) for column in wanted]
    found = {name: place_of(table.header, name, table.where) for name in beside}
    others = {name: place for name, place in found.items() if place is not None}
    told = [list(map(_written, table.column(place))) for place in others.values()]
    more = zip(*told, strict=True) if others else ((),) * len(table.lines)
    rows, lines, faults = [], [], list(table.faults)
    called = table.names or [""] * len(table.lines)
    for line, name, written, *row in zip(table.lines, called, more, *cells, strict=True):
        try:
            rows.append([*_whole(wanted, row, fault), *written])
            lines.append(line)
        except ValueError as error:
            faults.append(Fault(line, f"{name}: {error}" if name else str(error)))
    faults.sort(key=lambda fault: fault.line)
    kept = [*(column.name for column in wanted), *(BESIDE + name for name in others)]
    return Rows(
        table.where,
        {name: [row[i] for row in rows] for i, name in enumerate(kept)},
        lines,
        tuple(faults),
        table.unit,
        kinds={column.name: column.kind for column in wanted},
        found={column.name: table.header[places[column.name]] for column in wanted},
        header=table.header,
    )


def _written(value: object) -> str:
    return "" if value is None or value != value else str(value)


def _whole(columns: Sequence[Column], row: Sequence[Any], fault: Ask | None) -> list[Any]:
    for cell in row:
        if isinstance(cell, ValueError):
            raise cell
    cells = agree(columns, row)
    names = [column.name for column in columns]
    if fault is not None and (reason := fault(dict(zip(names, cells, strict=True)))):
        raise ValueError(reason)
    return cells


def is_withheld(table: Table, columns: Sequence[Column], names: Mapping[str, str]) -> bool:
    """Whether the table has a label column that holds no label at all, as public tests often do."""
    places = resolve(table.header, columns, names, table.where) if table.lines else {}
    labels = [places[c.name] for c in columns if KINDS[c.kind].labels and c.name in places]
    return any(all(value is None for value in table.column(place)) for place in labels)


def settle(parts: Sequence[Rows], skip: bool) -> tuple[str, ...]:
    """Refuses faulty rows with an `InputError`, or with `skip` says how many were left out."""
    faults = [(part, fault) for part in parts for fault in part.faults]
    if faults and not skip:
        raise InputError(_report(faults))
    for part in parts:
        if not part.lines:
            raise InputError(f"{part.where}: none of its {len(part.faults)} rows can be used")
    return tuple(
        f"{len(part.faults):,} of {len(part) + len(part.faults):,} rows of {part.where} were "
        f"skipped; the first: {part.unit} {part.faults[0].line}, {part.faults[0].reason}."
        for part in parts
        if part.faults
    )


def _report(faults: Sequence[tuple[Rows, Fault]]) -> str:
    shown = [f"{p.where}, {p.unit} {fault.line}: {fault.reason}" for p, fault in faults[:SHOWN]]
    more = len(faults) - len(shown)
    return (
        "\n  ".join(
            [
                f"{len(faults):,} row{'s' * (len(faults) > 1)} of the data cannot be used:",
                *shown,
                *([f"and {more:,} more"] if more else []),
            ]
        )
        + "\nCorrect the data, or continue without such rows: --skip-bad-rows"
    )
