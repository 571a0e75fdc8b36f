"""A table -> rows that hold what the task asks for, and the faults of those that do not."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import compress

from trimtab.core.errors import InputError
from trimtab.data.columns import Column, resolve
from trimtab.data.formats import Fault, Table

SHOWN = 5  # faults quoted in a message


@dataclass(frozen=True)
class Rows:
    """Checked rows: canonical name -> values, all `str`; `lines` says where each came from."""

    where: str
    columns: dict[str, list[str]]
    lines: list[int]
    faults: tuple[Fault, ...] = ()
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def keep(self, chosen: Sequence[bool], faults: Sequence[Fault] = ()) -> Rows:
        """The rows that are `chosen`, with the faults, if any, of those that are not."""
        columns = {name: list(compress(values, chosen)) for name, values in self.columns.items()}
        lines = list(compress(self.lines, chosen))
        return replace(self, columns=columns, lines=lines, faults=tuple(faults))

    def only(self, names: Container[str]) -> Rows:
        """Fewer columns of the same rows."""
        columns = {name: values for name, values in self.columns.items() if name in names}
        return replace(self, columns=columns)


def clean(table: Table, columns: Sequence[Column], names: Mapping[str, str]) -> Rows:
    """The table's rows under the canonical names; a row with a bad cell becomes a fault.

    Raises `InputError` where a required column is missing (see `columns.resolve`).
    """
    places = resolve(table.header, columns, names, table.where) if table.lines else {}
    wanted = [column for column in columns if column.name in places]
    rows, lines, faults = [], [], list(table.faults)
    cells = [table.column(places[column.name]) for column in wanted]
    for line, *values in zip(table.lines, *cells, strict=True):
        try:
            rows.append([_cell(c, value) for c, value in zip(wanted, values, strict=True)])
            lines.append(line)
        except ValueError as error:
            faults.append(Fault(line, str(error)))
    found = {column.name: [row[i] for row in rows] for i, column in enumerate(wanted)}
    faults.sort(key=lambda fault: fault.line)
    return Rows(table.where, found, lines, tuple(faults), table.unit)


def is_withheld(table: Table, columns: Sequence[Column], names: Mapping[str, str]) -> bool:
    """Whether the table has a label column that holds no label at all, as public tests often do."""
    places = resolve(table.header, columns, names, table.where) if table.lines else {}
    labels = [places[c.name] for c in columns if c.kind == "label" and c.name in places]
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


def _cell(column: Column, value: object) -> str:
    text = _text(column, value)
    if column.kind == "label":
        text = text.strip()
    if column.required and not text.strip():
        raise ValueError(f"{'missing' if value is None else 'empty'} {column.name}")
    return text


def _text(column: Column, value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return _unicode(value)
        case float() if value != value:  # NaN is how tables of numbers write "missing"
            return ""
        case float() if value.is_integer():
            return str(int(value))
        case bool() | int() | float() | Decimal():
            return str(value)
    raise ValueError(f"the {column.name} is a {type(value).__name__}, not text")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("not UTF-8") from error
    return text
