"""Every kind of column by its name, and how the cells of a table are read by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trimtab.data import cells, clips, clouds, media, molecules, regions
from trimtab.data.cells import Kind, Places
from trimtab.data.columns import Column

KINDS: dict[str, Kind] = {
    **cells.KINDS,
    **media.KINDS,
    **clips.KINDS,
    **regions.KINDS,
    **molecules.KINDS,
    **clouds.KINDS,
}


def read(column: Column, values: Sequence[object], places: Places) -> list[Any]:
    """A cell for each value, or the `ValueError` that tells why there is none."""

    def one(value: object) -> Any:
        try:
            return read_cell(column, value, places)
        except ValueError as error:
            return error

    if not KINDS[column.kind].slow or len(values) < 2:
        return [one(value) for value in values]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoders let go of the lock
        return list(threads.map(one, values))


def read_cell(column: Column, value: object, places: Places = ()) -> Any:
    """The cell; `ValueError` with the reason where the value is none of its kind."""
    kind = KINDS[column.kind]
    # NaN is how tables of numbers write "missing"
    absent = value is None or (isinstance(value, float) and value != value)
    blank = isinstance(value, str) and not value.strip() and not kind.may_be_empty
    if not absent and not blank:
        cell = kind.parse(column.name, value, places)
        if kind.may_be_empty or (cell != [] and cell != ""):
            return cell
    if column.required:
        raise ValueError(f"{'missing' if value is None else 'empty'} {column.name}")
    return kind.empty


def agree(columns: Sequence[Column], row: Sequence[Any]) -> list[Any]:
    """The row, once each cell was seen beside the one that it belongs to."""
    out = list(row)
    for i, column in enumerate(columns):
        kind = KINDS[column.kind]
        if kind.beside is None or out[i] == kind.empty:
            continue
        other = next(
            (cell for c, cell in zip(columns, row, strict=True) if c.kind == kind.beside), None
        )
        if other is not None:
            out[i] = kind.agree(column.name, out[i], other)
    return out
