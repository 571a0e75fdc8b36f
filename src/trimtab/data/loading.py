"""The two ways in: `load` for a data set with its splits, `read_rows` for one file of new rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import InputError
from trimtab.data.columns import Column, is_named_in
from trimtab.data.formats import Table, decode, read_bytes, read_csv, read_file, read_lines, sniff
from trimtab.data.rows import Rows, clean, is_withheld, settle
from trimtab.data.sources import SPLITS, missing, read_source
from trimtab.data.splits import (
    Splits,
    as_dataset,
    hold_out,
    rare_notes,
    refuse_own_labels,
    refuse_single_label,
    shared_note,
    without_unseen,
)

if TYPE_CHECKING:
    import datasets

STANDARD_INPUT = "standard input"


def load(
    source: str,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> Splits:
    """A data set for a task: file, folder of splits, or hub name -> train, validation, test.

    `columns` is what the task asks for; `names` maps a canonical name to the user's column. A
    split that is absent is held out of train: a tenth of it each, the same for the same `seed`.

    Raises `InputError` for a source, column or label that is not there, and for rows that cannot
    be used, unless `skip_bad_rows`, which leaves them out and says so in the notes.
    """
    tables = read_source(source)
    parts = {"train": clean(tables.pop("train"), columns, names)}
    withheld = [split for split in tables if is_withheld(tables[split], columns, names)]
    notes = [f"{split} has no labels and is left aside." for split in withheld]
    parts |= {s: clean(table, columns, names) for s, table in tables.items() if s not in withheld}
    notes += settle(list(parts.values()), skip_bad_rows)
    label = _label(columns, parts["train"])
    if label:
        parts, more = _with_known_labels(parts, label, skip_bad_rows)
        notes += more
    absent = [split for split in SPLITS if split not in parts]
    if absent:
        if label:
            refuse_own_labels(parts["train"], label)
        made, note = hold_out(parts["train"], absent, label, seed)
        parts |= made
        notes.append(note)
    if label:
        notes += rare_notes(parts["train"], label)
    parts = _with_common_columns(parts)
    for split in ("validation", "test"):
        notes += shared_note(split, parts[split], parts["train"], columns)
    ready = {split: as_dataset(parts[split]) for split in SPLITS}
    return Splits(**ready, origin=source, notes=tuple(notes))


def read_rows(
    path: str | Path,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    skip_bad_rows: bool = False,
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """One file of new rows, or standard input for "-", and notes about what was left out.

    Standard input is any of the formats, known by its first bytes; where one column is enough and
    there is no header, each line is a row. Errors are those of `load`, less those of splits.
    """
    table = _standard_input(columns, names) if str(path) == "-" else _file(Path(path).expanduser())
    rows = clean(table, columns, names)
    notes = settle([rows], skip_bad_rows)
    return as_dataset(rows), notes


def _file(path: Path) -> Table:
    if path.is_dir():
        raise InputError(f"{path} is a folder, where one file is expected")
    if not path.exists():
        raise InputError(missing(path))
    return read_file(path)


def _standard_input(columns: Sequence[Column], names: Mapping[str, str]) -> Table:
    data = sys.stdin.buffer.read()
    reader = sniff(data)
    if reader is read_csv and not names and _is_plain(data, columns):
        name = next(column.name for column in columns if column.required)
        return read_bytes(data, lambda d, where: read_lines(d, where, name), STANDARD_INPUT)
    return read_bytes(data, reader, STANDARD_INPUT)


def _is_plain(data: bytes, columns: Sequence[Column]) -> bool:
    """Whether data are lines of text for the one column needed, and not a table with a header."""
    required = [column for column in columns if column.required]
    if len(required) != 1 or required[0].kind != "text" or not (text := decode(data).lstrip()):
        return False
    first = text.splitlines()[0].split(",")
    if any(field != field.strip() for field in first):
        return True  # commas of prose: nobody pads the names of columns
    table = read_csv(data, STANDARD_INPUT)
    if any(is_named_in(table.header, column) for column in columns):
        return False
    return len(table.header) == 1 or bool(table.faults) or not table.lines


def _label(columns: Sequence[Column], train: Rows) -> str | None:
    """The label that splits are made and checked by."""
    return next((c.name for c in columns if c.kind == "label" and c.name in train.columns), None)


def _with_known_labels(
    parts: dict[str, Rows], label: str, skip_bad_rows: bool
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    train = parts["train"]
    refuse_single_label(train, label)
    held_out = {
        split: without_unseen(part, train, label)
        for split, part in parts.items()
        if split != "train" and label in part.columns
    }
    notes = settle(list(held_out.values()), skip_bad_rows)
    return {**parts, **held_out}, notes


def _with_common_columns(parts: dict[str, Rows]) -> dict[str, Rows]:
    """An optional column is of use only where every split has it."""
    common = set.intersection(*(set(part.columns) for part in parts.values()))
    return {split: part.only(common) for split, part in parts.items()}
