"""The two ways in: `load` for a data set with its splits, `read_rows` for one file of new rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import InputError, nearest
from trimtab.data import folders, media
from trimtab.data.cleaning import tidy
from trimtab.data.columns import BESIDE, Column, is_named_in, printable
from trimtab.data.formats import READERS, read_bytes, read_csv, read_file, read_lines, sniff
from trimtab.data.kinds import KINDS
from trimtab.data.rows import Ask, Rows, clean, is_withheld, settle
from trimtab.data.sources import SPLITS, missing, read_source
from trimtab.data.splits import (
    Splits,
    as_dataset,
    asked,
    hold_out,
    rare_notes,
    refuse_own_labels,
    refuse_single_label,
    shared_note,
    without_unseen,
)
from trimtab.data.table import Table, decode

if TYPE_CHECKING:
    import datasets

STANDARD_INPUT = "standard input"

Arrange = Callable[[Mapping[str, Table]], dict[str, Table]]


def load(
    source: str,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    seed: int = 0,
    skip_bad_rows: bool = False,
    tidied: Sequence[str] = (),
    fault: Ask | None = None,
    arrange: Arrange | None = None,
    beside: Sequence[str] = (),
) -> Splits:
    """A data set for a task: file, folder of splits, or hub name -> train, validation, test.

    `columns` is what the task asks for; `names` maps a canonical name to the user's column. A
    split that is absent is held out of train: a tenth of it each, the same for the same `seed`.
    `tidied` names steps of `trimtab.data.cleaning`; `fault` tells of a whole row why it cannot be
    used, if it cannot; `arrange` makes the task's rows where those of the file are others;
    columns `beside` those of the task come as text, under their name after `BESIDE`.

    Raises `InputError` for a source, column or label that is not there, and for rows that cannot
    be used, unless `skip_bad_rows`, which leaves them out and says so in the notes.
    """
    parts, told = read_parts(source, columns, names, fault, arrange, beside)
    _require(beside, *parts.values())
    parts, done = tidy(parts, columns, tidied)
    given = set(parts)
    parts, notes = divide(parts, columns, seed, skip_bad_rows)
    if "overlap" in tidied and given != set(parts):  # what was held out of train is known only now
        parts, more = tidy(parts, columns, ["overlap"])
        done, notes = (*done, *more), tuple(note for note in notes if "flatter" not in note)
        if label := label_of(columns, parts["train"]):
            parts, _ = _with_known_labels(parts, label, skip_bad_rows)
    ready = {split: as_dataset(parts[split]) for split in SPLITS}
    return Splits(**ready, origin=source, notes=(*told, *done, *notes))


def read_parts(
    source: str,
    columns: Sequence[Column],
    names: Mapping[str, str] = {},
    fault: Ask | None = None,
    arrange: Arrange | None = None,
    beside: Sequence[str] = (),
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The splits that the source has, each with the faults of its broken rows, and notes."""
    tables = read_source(source)
    tables = arrange(tables) if arrange else tables
    parts = {"train": clean(tables.pop("train"), columns, names, fault, beside)}
    withheld = [split for split in tables if is_withheld(tables[split], columns, names)]
    for split in (split for split in tables if split not in withheld):
        parts[split] = clean(tables[split], columns, names, fault, beside)
    return parts, tuple(f"{split} has no labels and is left aside." for split in withheld)


def divide(
    parts: dict[str, Rows], columns: Sequence[Column], seed: int, skip_bad_rows: bool
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The splits that a run works on: without faults, none absent; and notes on what was done."""
    notes = [*settle(list(parts.values()), skip_bad_rows)]
    label = label_of(columns, parts["train"])
    classes = label if label and parts["train"].kind(label) == "label" else None
    if classes:
        refuse_single_label(parts["train"], classes)
    if label:
        parts, more = _with_known_labels(parts, label, skip_bad_rows)
        notes += more
    absent = [split for split in SPLITS if split not in parts]
    if absent:
        if classes:
            refuse_own_labels(parts["train"], classes)
        known_by = asked(parts["train"], columns)
        made, note = hold_out(parts["train"], absent, label, seed, known_by)
        parts = {**parts, **made}
        notes.append(note)
    if classes:
        notes += rare_notes(parts["train"], classes)
    parts = _with_common_columns(parts)
    for split in ("validation", "test"):
        notes += shared_note(split, parts[split], parts["train"], columns)
    return parts, tuple(notes)


def read_rows(
    path: str | Path,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    skip_bad_rows: bool = False,
    fault: Ask | None = None,
    arrange: Arrange | None = None,
    beside: Sequence[str] = (),
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """One file of new rows, or standard input for "-", and notes about what was left out. An image
    or a recording is a file of one row, a folder of them one of many.

    Standard input is any of the formats, known by its first bytes; where one column is enough and
    there is no header, each line is a row. Errors are those of `load`, less those of splits.
    """
    if str(path) == "-":
        table = replace(_standard_input(columns, names), places=(Path.cwd(),))
    else:
        table = _file(Path(path).expanduser(), columns)
    table = arrange({"new": table})["new"] if arrange else table
    rows = clean(table, columns, names, fault, beside)
    _require(beside, rows)
    notes = settle([rows], skip_bad_rows)
    return as_dataset(rows), notes


def _file(path: Path, columns: Sequence[Column]) -> Table:
    if path.is_dir():
        return _folder(path, columns)
    if not path.exists():
        raise InputError(missing(path))
    return read_file(path)


def _folder(path: Path, columns: Sequence[Column]) -> Table:
    """What has no splits: files by label, with masks or with a list, or nothing but files."""
    if not any(column.kind in media.SUFFIXES for column in columns):
        raise InputError(f"{path} is a folder, where one file is expected")
    by_layout = folders.read_files({"train": path}, READERS) if len(columns) > 1 else {}
    table = by_layout.get("train") or folders.read_flat(path)
    if table is None:
        raise InputError(f"{path} is a folder without images or recordings, or with both of them")
    return table


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
    if (
        len(required) != 1
        or required[0].kind not in ("text", "words", "smiles")
        or not (text := decode(data).lstrip())
    ):
        return False
    first = text.splitlines()[0].split(",")
    if any(field != field.strip() for field in first):
        return True  # commas of prose: nobody pads the names of columns
    table = read_csv(data, STANDARD_INPUT)
    if any(is_named_in(table.header, column) for column in columns):
        return False
    return len(table.header) == 1 or bool(table.faults) or not table.lines


def _require(beside: Sequence[str], *parts: Rows) -> None:
    for name in beside:
        if not any(BESIDE + name in part.columns for part in parts):
            known = [printable(one) for one in parts[0].header]
            raise InputError(f"{parts[0].where} has no column {name!r}; {nearest(name, known)}")


def label_of(columns: Sequence[Column], train: Rows) -> str | None:
    """The column of labels that splits are made and checked by."""
    of_labels = (c.name for c in columns if KINDS[c.kind].labels and c.name in train.columns)
    return next(of_labels, None)


def _with_known_labels(
    parts: dict[str, Rows], label: str, skip_bad_rows: bool
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    train = parts["train"]
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
    common |= {name for part in parts.values() for name in part.columns if name.startswith(BESIDE)}
    return {split: part.only(common) for split, part in parts.items()}
