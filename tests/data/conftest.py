"""A small table, and its writers in every format."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from trimtab.data import Column


def write_delimited(path, rows, **dialect):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **dialect)
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path, rows):
    write_delimited(path, rows, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WRITERS = {
    ".csv": write_delimited,
    ".tsv": write_tsv,
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=1), encoding="utf-8"),
    ".parquet": lambda path, rows: pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), path
    ),
}


@pytest.fixture
def columns():
    """What text classification asks for."""
    return (
        Column("text", ("sentence", "review", "query", "title")),
        Column("label", ("labels", "category", "intent"), kind="label"),
    )


@pytest.fixture
def text_only(columns):
    return columns[:1]


@pytest.fixture(params=WRITERS)
def suffix(request):
    return request.param


@pytest.fixture
def write(tmp_path):
    """write("train.csv", rows or raw text or bytes) -> path, below a fresh folder."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            WRITERS[path.suffix](path, content)
        return path

    return write


@pytest.fixture
def reviews():
    """reviews(n) -> n rows with distinct texts: commas, quotes, accents; two labels."""

    def reviews(n, start=0):
        return [
            {"text": f'Film {i}, "très bon" 🎬', "label": "good" if i % 3 else "bad"}
            for i in range(start, start + n)
        ]

    return reviews
