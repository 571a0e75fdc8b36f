"""A stream gives the rows of the whole file, under its lines, whatever the size of its pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from trimtab.core.errors import InputError
from trimtab.data import Column, load
from trimtab.data.rows import Rows
from trimtab.data.streaming import load_stream

COLUMNS = (Column("text", ()), Column("label", (), kind="label"))
ROWS = [
    (f'row {i}, "quoted"\nover lines' if i % 7 == 0 else f"row {i}", "ab"[i % 2]) for i in range(90)
]
PLAIN = [(text.replace("\n", " "), label) for text, label in ROWS]

Pairs = Sequence[tuple[str, str]]


def csv(pairs: Pairs) -> bytes:
    rows = [f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in pairs]
    return "\n".join(["text,label", *rows, ""]).encode()


def tsv(pairs: Pairs) -> bytes:
    return "\n".join(["text\tlabel", *map("\t".join, pairs), ""]).encode()


def json_lines(pairs: Pairs) -> bytes:
    return "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in pairs).encode()


def parquet(pairs: Pairs) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": [t for t, _ in pairs], "label": [y for _, y in pairs]})
    pyarrow.parquet.write_table(table, sink, row_group_size=16)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, tuple[Callable[[Pairs], bytes], Pairs]] = {
    ".csv": (csv, ROWS),
    ".tsv": (tsv, PLAIN),
    ".jsonl": (json_lines, ROWS),
    ".parquet": (parquet, ROWS),
}


def written(folder: Path, suffix: str, more: Pairs = ()) -> str:
    write, rows = FORMATS[suffix]
    (folder / f"train{suffix}").write_bytes(write([*rows, *more]))
    for split in ("validation", "test"):
        (folder / f"{split}{suffix}").write_bytes(write([("held out", "a"), ("too", "b")]))
    return str(folder)


def cells(parts: Sequence[Rows], name: str) -> list[object]:
    return [cell for part in parts for cell in part.columns[name]]


@pytest.mark.parametrize("piece", [128, 1000, 10**6])
@pytest.mark.parametrize("suffix", FORMATS)
def test_pieces_are_the_whole(tmp_path: Path, suffix: str, piece: int) -> None:
    source = written(tmp_path, suffix)
    splits, pieces = load_stream(source, COLUMNS, piece=piece)
    found, whole = list(pieces()), load(source, COLUMNS)
    assert cells(found, "text") == list(whole.train["text"])
    assert cells(found, "label") == list(whole.train["label"])
    assert list(splits.test["text"]) == list(whole.test["text"])
    assert list(splits.train["text"]) == found[0].columns["text"]
    assert (len(found) > 1) == (piece < 10**6 and suffix != ".parquet")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_broken_row_of_a_later_piece_is_named_by_its_line(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path, suffix, more=[("", "a")])
    _, pieces = load_stream(source, COLUMNS, piece=200)
    with pytest.raises(InputError) as told:
        list(pieces())
    with pytest.raises(InputError) as whole:
        load(source, COLUMNS)
    assert str(told.value) == str(whole.value)
    _, pieces = load_stream(source, COLUMNS, piece=200, skip_bad_rows=True)
    assert len(cells(list(pieces()), "text")) == len(ROWS)


def test_a_label_of_a_later_piece(tmp_path: Path) -> None:
    source = written(tmp_path, ".tsv", more=[("strange", "c")])
    _, pieces = load_stream(source, COLUMNS, piece=200)
    with pytest.raises(InputError, match=r"train.tsv, line 92: label 'c' does not occur in"):
        list(pieces())


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    source = written(tmp_path, ".csv")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(InputError, match=r"--stream: .* missing: test"):
        load_stream(source, COLUMNS)
