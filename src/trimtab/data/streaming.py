"""A training file that is larger than memory, some megabytes of it at a time.

A folder has one file for each split; `train` is read piece by piece, the others whole. The first
piece stands for the whole wherever a run looks at its training data before it trains: lengths,
labels, what measurement chooses by. A label that only later pieces have makes their rows faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trimtab.core.errors import InputError
from trimtab.data.columns import Column
from trimtab.data.formats import READERS, of_arrow, read_file
from trimtab.data.loading import Arrange, divide, label_of
from trimtab.data.rows import Ask, Rows, clean, settle
from trimtab.data.sources import SPLITS, split_files
from trimtab.data.splits import Splits, as_dataset, without_unseen
from trimtab.data.table import Table

PIECE = 8 * 2**20  # bytes of a text file
_ROWS = 4096  # of a Parquet file

Pieces = Callable[[], Iterator[Rows]]


def load_stream(
    source: str,
    columns: Sequence[Column],
    *,
    names: Mapping[str, str] = {},
    seed: int = 0,
    skip_bad_rows: bool = False,
    fault: Ask | None = None,
    arrange: Arrange | None = None,
    piece: int = PIECE,
) -> tuple[Splits, Pieces]:
    """The splits, with the first piece for `train`, and a function that gives all pieces of it.

    Raises `InputError` as `trimtab.data.load` does, for later pieces when they are read.
    """
    files = _files(Path(source).expanduser())

    def read(table: Table) -> Rows:
        made = arrange({"rows": table})["rows"] if arrange else table
        if len(made.lines) + len(made.faults) != len(table.lines) + len(table.faults):
            raise InputError(
                f"--stream: {table.where} is cut into rows as a whole, and a stream has pieces of "
                "it: give the rows themselves, such as windows of a series"
            )
        return clean(made, columns, names, fault)

    first = read(next(_tables(files["train"], piece)))
    whole = {split: read(read_file(files[split])) for split in SPLITS if split != "train"}
    parts, notes = divide({"train": first, **whole}, columns, seed, skip_bad_rows)
    label = label_of(columns, parts["train"])

    def pieces() -> Iterator[Rows]:
        for table in _tables(files["train"], piece):
            rows = read(table)
            settle([rows], skip_bad_rows)
            if label is not None:
                rows = without_unseen(rows, parts["train"], label)
                settle([rows], skip_bad_rows)
            yield rows.only(parts["train"].columns)

    told = f"train is streamed: what is said of it is of its first {len(parts['train']):,} rows."
    ready = {split: as_dataset(parts[split]) for split in SPLITS}
    return Splits(**ready, origin=source, notes=(told, *notes)), pieces


def _files(folder: Path) -> dict[str, Path]:
    found = split_files(folder) if folder.is_dir() else {}
    if absent := [split for split in SPLITS if split not in found]:
        raise InputError(
            f"--stream: {folder} is no folder with a file for each of {', '.join(SPLITS)}; "
            f"missing: {', '.join(absent)}. Nothing can be held out of a stream"
        )
    if found["train"].suffix.lower() not in CUTS:
        raise InputError(
            f"--stream: {found['train'].name} cannot be read in pieces; those that can are "
            f"{', '.join(CUTS)}"
        )
    return found


def _tables(path: Path, piece: int) -> Iterator[Table]:
    """The file's rows in tables that fit into memory, under the lines of the whole file."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _of_parquet(path)
        return
    before = 0
    for data, of_header in _cut(path, piece, CUTS[suffix], headed=suffix in (".csv", ".tsv")):
        table = READERS[suffix](data, str(path))
        moved = before - of_header
        yield replace(
            table,
            lines=[line + moved for line in table.lines],
            faults=tuple(replace(one, line=one.line + moved) for one in table.faults),
            places=(path.parent,),
        )
        before += data.count(b"\n") - of_header


def _of_parquet(path: Path) -> Iterator[Table]:
    import pyarrow.parquet

    before = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            table = of_arrow(pyarrow.Table.from_batches([batch]), str(path))
            lines = [line + before for line in table.lines]
            yield replace(table, lines=lines, places=(path.parent,))
            before += len(lines)


def _cut(
    path: Path, piece: int, whole: Callable[[bytes], int], *, headed: bool
) -> Iterator[tuple[bytes, int]]:
    """Pieces that end where a row does, the header before each; and the lines of a header that the
    file does not have there."""
    with path.open("rb") as file:
        header = file.readline() if headed else b""
        rest, lines = b"", 0
        while read := file.read(piece):
            rest += read
            if end := whole(rest):
                yield header + rest[:end], lines
                rest, lines = rest[end:], header.count(b"\n")
        if rest.strip():
            yield header + rest, lines


def _after_line(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _after_record(data: bytes) -> int:
    """Behind the last line's end that lies in no quoted field: the quotes before it are even."""
    end = len(data)
    quotes = data.count(b'"')
    while (end := data.rfind(b"\n", 0, end)) >= 0:
        if (quotes - data.count(b'"', end)) % 2 == 0:
            return end + 1
    return 0


def _after_paragraph(data: bytes) -> int:
    end = data.rfind(b"\n\n")
    return end + 2 if end >= 0 else _after_line(data)


CUTS: Mapping[str, Callable[[bytes], int]] = {
    ".jsonl": _after_line,
    ".ndjson": _after_line,
    ".tsv": _after_line,
    ".csv": _after_record,
    ".txt": _after_paragraph,
    ".parquet": len,
}
