"""Each kind of bad input is refused with a message that names it and says what to do."""

import re

import pyarrow
import pyarrow.parquet
import pytest

from trimtab.core.errors import InputError
from trimtab.data import load, read_rows

BROKEN_ROWS = {  # file -> (content, line of the fault, reason); all else in it is well
    "bytes.csv": (b"text,label\nok,a\nbad \xff,b\n", 3, "not UTF-8"),
    "bytes.tsv": (b"text\tlabel\nok\ta\nbad \xff\tb\n", 3, "not UTF-8"),
    "bytes.jsonl": (
        b'{"text": "ok", "label": "a"}\n{"text": "\xe9", "label": "a"}\n',
        2,
        "not UTF-8",
    ),
    "bytes.json": (
        b'[{"text": "ok", "label": "a"},\n\n{"text": "\xe9", "label": "a"}]',
        3,
        "not UTF-8",
    ),
    "surrogate.jsonl": (
        '{"text": "\\ud800", "label": "a"}\n{"text": "ok", "label": "a"}\n',
        1,
        "not UTF-8",
    ),
    "few.csv": ("text,label\nok,a\n\nalone\n", 4, "1 field where the header has 2"),
    "many.tsv": ("text\tlabel\nok\ta\nx\ty\tz\n", 3, "3 fields where the header has 2"),
    "after.csv": ('text,label\n"two\nlines",a\n\n"",b\n', 5, "empty text"),
    "quote.csv": (
        'text,label\nok,a\n"open,b\n',
        3,
        "a quoted field is not closed where it should be, by line 3",
    ),
    "blank.csv": ("text,label\nok,a\n   ,b\n", 3, "empty text"),
    "unlabelled.tsv": ("text\tlabel\nok\ta\nfine\t\n", 3, "empty label"),
    "syntax.jsonl": (
        '{"text": "ok", "label": "a"}\n{"text" "no"}\n',
        2,
        "invalid JSON (Expecting ':' delimiter, column 9)",
    ),
    "deep.jsonl": (
        '{"text": "ok", "label": "a"}\n' + "[" * 100_000 + "\n",
        2,
        "invalid JSON (nested too deeply, or a number too long)",
    ),
    "list.jsonl": (
        '{"text": "ok", "label": "a"}\n[1, 2]\n',
        2,
        "[1, 2] where an object {…} is expected",
    ),
    "number.json": (
        '[{"text": "ok", "label": "a"},\n 3]',
        2,
        "3 where an object {…} is expected",
    ),
    "null.jsonl": ('{"text": "ok", "label": "a"}\n{"text": "b"}\n', 2, "missing label"),
    "nested.jsonl": (
        '{"text": "ok", "label": "a"}\n{"text": ["b"], "label": "a"}\n',
        2,
        "the text is a list, not text",
    ),
}


def message(error):
    return str(error.value)


@pytest.mark.parametrize("name", BROKEN_ROWS)
class TestBrokenRows:
    def test_is_refused_with_file_and_line(self, name, write, columns):
        content, line, reason = BROKEN_ROWS[name]
        path = write(name, content)
        with pytest.raises(InputError) as error:
            read_rows(path, columns)
        assert message(error) == (
            f"1 row of the data cannot be used:\n  {path}, line {line}: {reason}\n"
            "Correct the data, or continue without such rows: --skip-bad-rows"
        )

    def test_is_left_out_and_noted_when_asked(self, name, write, columns):
        content, line, reason = BROKEN_ROWS[name]
        path = write(name, content)
        rows, notes = read_rows(path, columns, skip_bad_rows=True)
        assert rows["label"][:] == ["a"]
        assert notes == (f"1 of 2 rows of {path} were skipped; the first: line {line}, {reason}.",)


def test_a_row_of_parquet_is_named_by_its_number(tmp_path, columns):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1.0, float("nan"), None]})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(InputError) as error:
        read_rows(path, columns)
    assert "row 2: empty label" in message(error)
    assert "row 3: missing label" in message(error)


def test_five_faults_are_shown_and_the_rest_counted_over_all_files(write, columns):
    write("data/train.csv", "text,label\n" + "a,x\nb,y\n" + ",x\n" * 4)
    folder = write("data/test.csv", "text,label\na,x\n" + ",x\n" * 1_000).parent
    with pytest.raises(InputError) as error:
        load(str(folder), columns)
    lines = message(error).splitlines()
    assert lines[0] == "1,004 rows of the data cannot be used:"
    assert [re.search(r"(\w+\.csv), line (\d+)", line).groups() for line in lines[1:6]] == [
        *(("train.csv", str(n)) for n in (4, 5, 6, 7)),
        ("test.csv", "3"),
    ]
    assert lines[6].strip() == "and 999 more"


def test_skipping_every_row_is_refused_still(write, columns):
    path = write("x.csv", "text,label\n,a\n,b\n")
    with pytest.raises(InputError, match="none of its 2 rows can be used"):
        read_rows(path, columns, skip_bad_rows=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "", "is empty"),
        ("x.tsv", b"\xef\xbb\xbf \n", "is empty"),
        ("x.csv", "text,label\n", "has a header and no rows"),
        ("x.json", "[]", "no rows"),
        ("x.json", '[{"text": "a",\n "label": }]', "line 2: invalid JSON (Expecting value"),
        ("x.json", '[{"text": "a"}] tail', "line 1: invalid JSON (Extra data"),
        ("x.json", '{"text":\n ["a"]}', "expected a list of objects"),
        (
            "x.csv",
            b"\xff\xfet\0e\0x\0t\0",
            "line 1: the header that names the columns is not UTF-8",
        ),
        ("x.parquet", "text,label\na,b\n", "is no readable Parquet file"),
        ("x.xlsx", "a", "files in '.xlsx' are not read; known: '.csv'"),
        ("x.jsonn", "a", "files in '.jsonn' are not read; nearest: '.json'"),
        ("x", "a", "files without a suffix are not read"),
    ],
)
def test_a_file_that_is_no_table(name, content, expected, write, columns):
    path = write(name, content)
    for read in (load, read_rows):
        with pytest.raises(InputError) as error:
            read(str(path), columns)
        assert str(path) in message(error)
        assert expected in message(error)


def test_a_column_that_is_not_found_names_those_there_are_and_the_flag(write, columns):
    path = write("x.csv", "text,klass\na,b\n")
    with pytest.raises(InputError) as error:
        read_rows(path, columns)
    assert message(error) == (
        f"{path} has no column for the label (usual names: label, labels, category, intent). "
        "Its columns are 'text', 'klass'; name the right one with --column label=NAME"
    )


def test_a_column_that_another_was_said_to_be_is_told(write, columns):
    path = write("x.csv", "label,number\nfine,1\nbad,0\n")
    with pytest.raises(
        InputError, match=r"no column for the label.*; 'label' was said to be the text"
    ):
        read_rows(path, columns, names={"text": "label"})


def test_a_file_without_a_header_does_not_fill_the_message(write, columns):
    path = write("x.tsv", f"{'long ' * 100}\tpositive\nmore\tnegative\n")
    with pytest.raises(InputError) as error:
        read_rows(path, columns)
    assert f"'{('long ' * 100)[:39]}…'" in message(error)


def test_an_unknown_column_name_has_near_ones(write, columns):
    path = write("x.csv", "text,klass\na,b\n")
    with pytest.raises(
        InputError, match=r"no column 'class' \(--column label=class\); nearest: 'klass'"
    ):
        read_rows(path, columns, names={"label": "class"})


def test_a_name_for_a_column_that_the_task_lacks(write, columns):
    path = write("x.csv", "text,label\na,b\n")
    with pytest.raises(InputError, match="no column 'lable'; nearest: 'label'"):
        read_rows(path, columns, names={"lable": "label"})


def test_one_column_cannot_be_both(write, columns):
    path = write("x.csv", "text,label\na,b\n")
    with pytest.raises(InputError, match="label and text are both said to be the column 'text'"):
        read_rows(path, columns, names={"text": "text", "label": "text"})


def test_a_header_that_has_the_column_twice(write, columns):
    path = write("x.csv", "text,label,text\na,b,c\n")
    with pytest.raises(InputError, match="has 2 columns named 'text'"):
        read_rows(path, columns)


def test_one_label_only(write, columns):
    path = write("x.csv", "text,label\na,same\nb,same\n")
    with pytest.raises(InputError, match="one label only: 'same' in all 2 rows"):
        load(str(path), columns)


class TestUnseenLabel:
    @pytest.fixture
    def folder(self, write, reviews):
        write("data/train.csv", reviews(40))
        write("data/val.csv", reviews(4, 40))
        return write("data/test.csv", 'text,label\n"a\nb",good\nc,goood\n').parent

    def test_is_named_with_file_and_line_and_near_labels(self, folder, columns):
        with pytest.raises(InputError) as error:
            load(str(folder), columns)
        assert (
            f"{folder / 'test.csv'}, line 4: label 'goood' does not occur in "
            f"{folder / 'train.csv'}; nearest: 'good'"
        ) in message(error)

    def test_thousands_of_distinct_ones_are_no_long_wait(self, write, columns):
        write("data/train.csv", [{"text": f"a{i}", "label": f"{i}.5"} for i in range(4_000)])
        rows = [{"text": f"b{i}", "label": f"{i}.25"} for i in range(4_000)]
        folder = write("data/test.csv", rows).parent
        with pytest.raises(InputError) as error:  # all pairs compared would take many minutes
            load(str(folder), columns)
        assert message(error).count("nearest: ") == 5

    def test_is_left_out_and_noted_when_asked(self, folder, columns):
        splits = load(str(folder), columns, skip_bad_rows=True)
        assert splits.test["text"][:] == ["a\nb"]
        assert any("1 of 2 rows" in n and "'goood'" in n for n in splits.notes)


class TestPaths:
    def test_a_missing_file_has_near_names(self, write, columns):
        path = write("reviews.csv", "text,label\na,b\n").with_name("review.csv")
        for read in (load, read_rows):
            with pytest.raises(InputError, match="no file or folder of this name; nearest: 'rev"):
                read(str(path), columns)

    def test_a_missing_folder_is_named(self, tmp_path, columns):
        with pytest.raises(InputError, match=r"nor does the folder '.*nowhere'"):
            load(str(tmp_path / "nowhere" / "x.csv"), columns)

    def test_a_folder_is_not_one_file(self, tmp_path, columns):
        with pytest.raises(InputError, match="is a folder, where one file is expected"):
            read_rows(tmp_path, columns)

    def test_a_folder_without_data_lists_what_is_there(self, write, columns):
        write("data/notes.txt", "x")
        folder = write("data/picture.png", "x").parent
        with pytest.raises(
            InputError, match=r"only notes\.txt, picture\.png; a folder needs train"
        ):
            load(str(folder), columns)

    def test_an_empty_folder(self, tmp_path, columns):
        with pytest.raises(InputError, match="only nothing"):
            load(str(tmp_path), columns)

    def test_a_folder_without_train(self, write, columns, reviews):
        folder = write("data/test.csv", reviews(3)).parent
        with pytest.raises(InputError, match=r"has test\.csv, but no train file"):
            load(str(folder), columns)

    def test_two_files_for_one_split(self, write, columns, reviews):
        write("data/val.csv", reviews(3))
        folder = write("data/dev.csv", reviews(3)).parent
        with pytest.raises(InputError, match=r"two files for validation: dev\.csv and val\.csv"):
            load(str(folder), columns)


def test_names_are_sought_in_train_first(write, reviews, columns):
    write("data/test.csv", reviews(3))
    folder = write("data/train.csv", reviews(30)).parent
    with pytest.raises(InputError, match=r"train\.csv has no column 'lable'"):
        load(str(folder), columns, names={"label": "lable"})
