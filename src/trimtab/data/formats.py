"""The bytes of one file -> a table: CSV, TSV, JSON Lines, JSON, Parquet, CoNLL, plain text.

Text is decoded once, with `surrogateescape`: a byte that is no UTF-8 then spoils its own row, which
is reported by line, and not the whole file. Reading judges the form alone; what a cell must hold
is the concern of `kinds`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError, nearest
from trimtab.data import detection, media
from trimtab.data.sequences import read_conll, read_texts
from trimtab.data.table import Fault, Reader, Table, decode, is_unicode, of_rows

if TYPE_CHECKING:
    import datasets
    import pyarrow


def read_file(path: Path) -> Table:
    """The table in a file, by its suffix. Raises `InputError` where there is none to read."""
    if kind := media.family(path):
        return of_rows(str(path), (kind,), [(1, (path.name,))], unit="file", places=(path.parent,))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: files {f'in {path.suffix!r}' if path.suffix else 'without a suffix'} are not "
            f"read; {nearest(path.suffix, READERS)}"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    table = read_bytes(data, reader, str(path))
    return replace(table, places=(path.parent, *detection.beside(path)))


def read_bytes(data: bytes, reader: Reader, where: str) -> Table:
    """The table in `data`; one without a single row is an `InputError`."""
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise InputError(f"{where} is empty")
    table = reader(data, where)
    if not table.lines and not table.faults:
        raise InputError(
            f"{where} has a header and no rows" if table.header else f"{where}: no rows"
        )
    return table


def sniff(data: bytes) -> Reader:
    """The reader for data without a name: standard input."""
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PAR1"):
        return read_parquet
    if re.match(rb"\[\s*\{", start):
        return read_json
    if start.startswith(b"{"):
        return read_json_lines
    return read_tsv if b"\t" in start.partition(b"\n")[0] else read_csv


# Delimited text


def read_csv(data: bytes, where: str) -> Table:
    """RFC 4180, with a header."""
    return _delimited(decode(data), where)


def read_tsv(data: bytes, where: str) -> Table:
    """Tab-separated, with a header and without quoting: a quotation mark is a character."""
    return _delimited(decode(data), where, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_lines(data: bytes, where: str, name: str) -> Table:
    """Plain text without a header, one value of the column `name` on each line."""
    lines = re.split(r"\r\n|\n|\r", decode(data).rstrip("\r\n"))
    return Table(where, (name,), lambda _: lines, range(1, len(lines) + 1))


def _delimited(text: str, where: str, **dialect) -> Table:
    records = _records(text, **dialect)
    first, header = next((line, fields) for line, fields in records if fields)
    if isinstance(header, Fault) or not is_unicode("".join(header)):
        raise InputError(
            f"{where}, line {first}: the header that names the columns is not UTF-8 text"
        )
    lines, rows, faults = [], [], []
    for line, fields in records:
        if isinstance(fields, Fault):
            faults.append(fields)
        elif len(fields) == len(header):
            lines.append(line)
            rows.append(fields)
        elif fields or len(header) == 1:
            faults.append(Fault(line, _misfit(len(fields), len(header))))
    names = tuple(name.strip() for name in header)
    return Table(where, names, lambda i: [row[i] for row in rows], lines, tuple(faults))


def _records(text: str, **dialect) -> Iterator[tuple[int, list[str] | Fault]]:
    """Each record with the line it begins on: a quoted field may span lines."""
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), strict=True, **dialect)
    with _fields_of_any_size():
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except csv.Error:
                reason = (
                    f"a quoted field is not closed where it should be, by line {reader.line_num}"
                )
                yield line, Fault(line, reason)
            except StopIteration:
                return


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """The csv module refuses fields over 128 KiB, and documents may be longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _misfit(found: int, expected: int) -> str:
    if found == 0:
        return "an empty line"
    return f"{found} field{'s' * (found != 1)} where the header has {expected}"


# JSON


def read_json_lines(data: bytes, where: str) -> Table:
    """One object on each line."""
    numbered = enumerate(decode(data).split("\n"), start=1)
    return _objects(where, ((line, _parsed(raw)) for line, raw in numbered if raw.strip()))


def read_json(data: bytes, where: str) -> Table:
    """A list of objects; JSON Lines under the wrong suffix, which is common, are read as such."""
    text = decode(data)
    start = text.lstrip()[:1]
    if start == "{" and detection.may_be_coco(text) and detection.is_coco(found := _parsed(text)):
        return detection.read_coco(found, where)
    if start == "{" and isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
        return read_json_lines(data, where)
    if start != "[":
        raise InputError(f"{where}: expected a list of objects, [{{…}}, …], found {start!r} first")
    return _objects(where, _elements(text, where))


def _objects(where: str, items: Iterable[tuple[int, object]]) -> Table:
    lines, rows, faults = [], [], []
    for line, item in items:
        if isinstance(item, dict):
            lines.append(line)
            rows.append(item)
        elif isinstance(item, Fault):
            faults.append(Fault(line, item.reason))
        else:
            faults.append(Fault(line, f"{json.dumps(item)[:30]} where an object {{…}} is expected"))
    header = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(where, header, lambda i: [r.get(header[i]) for r in rows], lines, tuple(faults))


def _parsed(raw: str) -> object:
    """The value, or a fault with its line within `raw`."""
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        return Fault(error.lineno, f"invalid JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError):
        return Fault(0, "invalid JSON (nested too deeply, or a number too long)")


def _elements(text: str, where: str) -> Iterator[tuple[int, object]]:
    """The list's elements, walked a second time to learn the line on which each begins."""
    items = _parsed(text)
    if isinstance(items, Fault):
        raise InputError(f"{where}{f', line {items.line}' * (items.line > 0)}: {items.reason}")
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    line, counted, end = 1, 0, text.index("[") + 1
    for item in items:
        start = between.match(text, end).end()
        line += text.count("\n", counted, start)
        counted = start
        yield line, item
        _, end = decoder.raw_decode(text, start)


# Arrow


def read_parquet(data: bytes, where: str) -> Table:
    """Parquet; class labels written by `datasets` become their names."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{where} is no readable Parquet file") from error
    return of_arrow(table, where)


def of_arrow(table: pyarrow.Table, where: str) -> Table:
    features = _features(table.schema)
    return Table(
        where,
        tuple(table.column_names),
        lambda i: _named(features.get(table.column_names[i]), table.column(i).to_pylist()),
        range(1, table.num_rows + 1),
        unit="row",
    )


def read_dataset(data: datasets.Dataset, where: str) -> Table:
    """A `datasets.Dataset`: columns are read when asked for, images and recordings as they lie."""
    header = tuple(data.column_names)
    return Table(
        where,
        header,
        lambda i: _named(data.features[header[i]], _undecoded(data, header[i])[header[i]][:]),
        range(1, len(data) + 1),
        unit="row",
    )


def _undecoded(data: datasets.Dataset, name: str) -> datasets.Dataset:
    feature = data.features[name]
    if not getattr(feature, "decode", False):
        return data
    return data.select_columns([name]).cast_column(name, replace(feature, decode=False))


def _features(schema) -> dict:
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def _named(feature: Any, values: list[Any]) -> list[Any]:
    """Values with the names of their classes, however deep these lie in lists and records."""
    return [_name(feature, value) for value in values] if _has_names(feature) else values


def _has_names(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_has_names, feature.values()))
    inner = getattr(feature, "feature", None)
    return getattr(feature, "names", None) is not None or (inner is not None and _has_names(inner))


def _name(feature: Any, value: Any) -> Any:
    if value is None or feature is None:
        return value
    if isinstance(feature, dict):
        return {key: _name(feature.get(key), one) for key, one in value.items()}
    if getattr(feature, "names", None) is not None:
        # -1 is how `datasets` writes a label that is withheld
        return None if value < 0 else feature.names[value]
    inner = getattr(feature, "feature", None)
    return value if inner is None else [_name(inner, one) for one in value]


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    ".conll": read_conll,
    ".iob": read_conll,
    ".annotated": read_conll,
    ".txt": read_texts,
}
SEQUENCES = (".conll", ".iob", ".annotated", ".txt")  # which `datasets` would read otherwise
