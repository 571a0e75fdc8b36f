"""The same table in every format is the same data set; what was written is what is read."""

import csv
import io
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.data import load, read_rows
from trimtab.data.formats import read_csv, read_json

TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1, max_size=30
)


def contents(splits):
    return [part.to_dict() for part in (splits.train, splits.validation, splits.test)]


def test_one_file_is_the_same_data_set_in_every_format(suffix, write, reviews, columns):
    rows = reviews(60)
    expected = load(str(write("reference.jsonl", rows)), columns, seed=3)
    found = load(str(write(f"reviews{suffix}", rows)), columns, seed=3)
    assert contents(found) == contents(expected)


def test_a_folder_is_the_same_data_set_in_every_format(suffix, write, reviews, columns):
    parts = {"train": reviews(20), "dev": reviews(7, 20), "test": reviews(9, 27)}
    for name, rows in parts.items():
        path = write(f"data/{name}{suffix}", rows)
    splits = load(str(path.parent), columns)
    assert [d.to_list() for d in (splits.train, splits.validation, splits.test)] == list(
        parts.values()
    )
    assert splits.notes == ()
    assert splits.origin == str(path.parent)


def test_one_file_of_rows_in_every_format(suffix, write, reviews, columns):
    rows, notes = read_rows(write(f"new{suffix}", reviews(5)), columns)
    assert rows.to_list() == reviews(5)
    assert notes == ()


@pytest.mark.parametrize("number", [0, 1.0, 7])
def test_numeric_labels_become_strings_in_every_typed_format(suffix, number, write, columns):
    if suffix in (".csv", ".tsv"):
        number = int(number)  # there a label is text: "1.0" stays what it is
    rows, _ = read_rows(write(f"new{suffix}", [{"text": "a", "label": number}]), columns)
    assert rows["label"][:] == [str(int(number))]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_csv_reads_what_the_csv_module_wrote_with_the_lines_of_the_file(pairs):
    file, starts = io.StringIO(newline=""), []
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    for pair in pairs:
        starts.append(1 + file.getvalue().count("\n"))
        writer.writerow(pair)
    table = read_csv(file.getvalue().encode(), "x.csv")
    assert list(zip(table.column(0), table.column(1), strict=True)) == pairs
    assert list(table.lines) == starts


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(TEXT, TEXT, min_size=1, max_size=3), min_size=1, max_size=6))
def test_json_reads_every_object_with_its_line(objects):
    text = "\n[\n" + ",\n".join(json.dumps(o, indent=2) for o in objects) + "\n]"
    table = read_json(text.encode(), "x.json")
    for i, name in enumerate(table.header):
        assert table.column(i) == [o.get(name) for o in objects]
    raw = text.split("\n")
    assert [raw[line - 1] for line in table.lines] == ["{"] * len(objects)


def test_tsv_knows_no_quoting(write, columns):
    rows, _ = read_rows(write("x.tsv", 'text\tlabel\n"open\tgood\nit\'s "so"\tbad\n'), columns)
    assert rows["text"][:] == ['"open', 'it\'s "so"']


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_table(write, columns):
    path = write("x.csv", b"\xef\xbb\xbftext,label\r\ngood film,good\r\n")
    assert read_rows(path, columns)[0].to_list() == [{"text": "good film", "label": "good"}]


def test_blank_lines_between_rows_are_no_rows(write, columns):
    path = write("x.csv", "\ntext,label\n\nfine,good\n\n\n")
    assert read_rows(path, columns)[0]["text"][:] == ["fine"]


def test_documents_may_be_longer_than_the_csv_modules_limit(write, text_only):
    limit = csv.field_size_limit()
    rows, _ = read_rows(write("x.csv", f"text\n{'word ' * 40_000}\n"), text_only)
    assert len(rows["text"][0]) == 200_000
    assert csv.field_size_limit() == limit


def test_json_lines_under_the_suffix_of_json(write, columns):
    path = write("x.json", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert read_rows(path, columns)[0]["label"][:] == ["x", "y"]


def test_class_labels_in_parquet_become_their_names(tmp_path, columns):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).to_parquet(path)
    assert read_rows(path, columns)[0]["label"][:] == ["yes", "no"]


class TestStandardInput:
    @pytest.fixture
    def read(self, monkeypatch):
        def read(data, columns, **options):
            stdin = io.TextIOWrapper(io.BytesIO(data))
            monkeypatch.setattr("sys.stdin", stdin)
            return read_rows("-", columns, **options)

        return read

    def test_every_format_is_known_by_its_beginning(self, suffix, write, reviews, columns, read):
        data = write(f"new{suffix}", reviews(4)).read_bytes()
        assert read(data, columns)[0].to_list() == reviews(4)

    def test_lines_without_a_header_are_texts(self, read, text_only):
        rows, _ = read(b"Good, really.\nNot so good\n", text_only)
        assert rows["text"][:] == ["Good, really.", "Not so good"]

    @pytest.mark.parametrize(
        "data", [b"text, that is what it is\nA dull film, sadly\n", b"dull, slow\nfine, warm\n"]
    )
    def test_commas_of_prose_make_no_table(self, data, read, text_only):
        assert read(data, text_only)[0]["text"][:] == data.decode().splitlines()

    def test_a_header_alone_decides(self, read, text_only):
        assert read(b"Review\nGood\n", text_only)[0]["text"][:] == ["Good"]

    def test_a_table_with_a_foreign_header_is_not_taken_for_lines(self, read, text_only):
        with pytest.raises(InputError, match="standard input has no column for the text"):
            read(b"remark,stars\nGood,5\n", text_only)

    @pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf"])
    def test_nothing_is_an_error(self, data, read, text_only):
        with pytest.raises(InputError, match="standard input is empty"):
            read(data, text_only)

    def test_an_empty_line_is_reported_with_its_number(self, read, text_only):
        with pytest.raises(InputError, match="standard input, line 2: empty text"):
            read(b"Good.\n\nBad.\n", text_only)
