"""A table of values, one step of time a row -> windows of them: what was, and what came.

A window's row is `series`, the name of the column, `past` and `future`. Where one file is all there
is, it is parted in time before it is cut, so that no step that is held out is ever trained on:

    train | validation | test = first 0.7 | next 0.1 | last 0.2 of the steps

Where one of the held-out splits is missing, the end of train is it, in the same proportion.
The `past` of a held-out window may reach back before its split; its `future` does not, nor does a
window of train reach out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import accumulate, pairwise

from trimtab.core.errors import InputError, nearest
from trimtab.data.cells import number, numbers
from trimtab.data.columns import printable
from trimtab.data.table import Table, of_rows

HEADER = ("series", "past", "future")
TIMES = ("date", "time", "timestamp", "datetime", "ds")
TENTHS = {"train": 7, "validation": 1, "test": 2}


def windows(
    tables: Mapping[str, Table],
    context: int,
    horizon: int,
    stride: int = 1,
    targets: Sequence[str] = (),
    *,
    new: bool = False,
) -> dict[str, Table]:
    """The splits' windows of `context` and `horizon` steps, begun every `stride` steps. Tables
    whose cells have several values are windows already. Of `new` data the last steps are the past
    of what nobody knows yet.

    Raises `InputError` for a target that is not there, a value that is none, steps out of order,
    and fewer steps than a window has.
    """
    if any(map(_has_lists, tables.values())):
        return dict(tables)
    read = {split: _series(table, targets) for split, table in tables.items()}
    if new:
        return {split: _last(tables[split], read[split], context) for split in tables}
    whole = {
        split: _cut(tables[split], read[split], (0.0, 1.0), context, horizon, stride)
        for split in tables
        if split != "train"
    }
    if "train" not in tables:  # other data, which are nobody's split
        return whole
    table, shares = tables["train"], _shares([split for split in TENTHS if split not in whole])
    if len(shares) == 1:
        return {"train": _cut(table, read["train"], (0.0, 1.0), context, horizon, stride), **whole}
    parts = {
        split: _cut(table, read["train"], share, context, horizon, stride)
        for split, share in shares.items()
    }
    named = {s: replace(part, where=f"{table.where} ({s})") for s, part in parts.items()}
    return {**named, **whole}


def _shares(splits: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Where each of these begins and ends in a table that is parted between them."""
    ends = list(accumulate(TENTHS[split] for split in splits))
    edges = [0.0, *(end / ends[-1] for end in ends)]
    return dict(zip(splits, pairwise(edges), strict=True))


def _cut(
    table: Table,
    series: Mapping[str, Sequence[float]],
    share: tuple[float, float],
    context: int,
    horizon: int,
    stride: int,
) -> Table:
    steps = len(table.lines)
    first, last = (round(end * steps) for end in share)
    starts = range(max(0, first - context), last - context - horizon + 1, stride)
    if not starts:
        raise InputError(
            f"{table.where}: {last - first:,} of its {steps:,} steps are a split, and a window has "
            f"{context} and {horizon}: the model needs a longer series, or give splits as files"
        )
    rows = [
        (
            table.lines[at],
            (name, list(found[at : at + context]), list(found[at + context :][:horizon])),
        )
        for name, found in series.items()
        for at in starts
    ]
    return of_rows(table.where, HEADER, rows, table.faults, unit=table.unit)


def _last(table: Table, series: Mapping[str, Sequence[float]], context: int) -> Table:
    line = table.lines[max(0, len(table.lines) - context)]
    rows = [(line, (name, list(found[-context:]))) for name, found in series.items()]
    return of_rows(table.where, HEADER[:2], rows, table.faults, unit=table.unit)


def _series(table: Table, targets: Sequence[str]) -> dict[str, list[float]]:
    """The columns to forecast, each value a number."""
    if not table.lines:
        raise InputError(f"{table.where} has no rows")
    if table.faults:
        fault = table.faults[0]
        raise InputError(f"{table.where}, {table.unit} {fault.line}: {fault.reason}")
    header = list(table.header)
    for name in targets:
        if name not in header:
            raise InputError(
                f"{table.where} has no column {name!r} to forecast (target); "
                f"{nearest(name, map(printable, header))}"
            )
    _refuse_disorder(table)
    chosen = targets or [
        name for i, name in enumerate(header) if not _is_time(name) and _is_number(table, i)
    ]
    if not chosen:
        raise InputError(f"{table.where} has no column of numbers to forecast")
    return {name: _numbers(table, name) for name in chosen}


def _numbers(table: Table, name: str) -> list[float]:
    found = []
    for line, value in zip(table.lines, table.column(table.header.index(name)), strict=True):
        try:
            if value is None or (isinstance(value, str) and not value.strip()):
                raise ValueError(f"the value of {name} is missing")
            found.append(number(f"value of {name}", value))
        except ValueError as error:
            raise InputError(
                f"{table.where}, {table.unit} {line}: {error}. Fill in or interpolate what is "
                "missing: windows are of steps at equal distances"
            ) from None
    return found


def _has_lists(table: Table) -> bool:
    """By the first row."""
    first = [table.column(i)[0] for i in range(len(table.header) if table.lines else 0)]
    return any(_is_list(value) for value in first)


def _is_list(value: object) -> bool:
    try:
        return isinstance(value, list) or len(numbers("", value)) > 1
    except ValueError:
        return False


def _is_number(table: Table, column: int) -> bool:
    """By the first value, so that a later one that is none is told."""
    try:
        number("", table.column(column)[0])
    except ValueError:
        return False
    return True


def _is_time(name: str) -> bool:
    return name.casefold() in TIMES


def _refuse_disorder(table: Table) -> None:
    place = next((i for i, name in enumerate(table.header) if _is_time(name)), None)
    if place is None:
        return
    try:
        times = [datetime.fromisoformat(str(value)) for value in table.column(place)]
    except ValueError:  # of another calendar or form: the order is the file's
        return
    for i, (before, after) in enumerate(pairwise(times), start=1):
        if not before < after:
            raise InputError(
                f"{table.where}, {table.unit} {table.lines[i]}: {after} does not come after "
                f"{before}. Sort the rows by time, and give series one beside the other"
            )
