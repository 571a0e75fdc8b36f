"""Columns of text that is more than one string: what each kind reads, and what it refuses."""

import json

import datasets
import pytest

from trimtab.core.errors import InputError
from trimtab.data import Column, load, read_rows

WORDS, TAGS = Column("tokens", ("words",), kind="words"), Column("tags", (), kind="tags")
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def one(kind, required=True):
    return (Column("x", (), kind=kind, required=required),)


def rows_of(write, values, columns):
    path = write("x.jsonl", [{"x": value} for value in values])
    return read_rows(path, columns)[0]["x"][:]


READ = [  # kind, value in JSON or in a cell of text, what is read
    ("words", ["two", "words"], ["two", "words"]),
    ("words", "two  words", ["two", "words"]),
    ("words", '["with blank", "b"]', ["with blank", "b"]),
    ("words", "['as Python', \"prints it\"]", ["as Python", "prints it"]),
    ("words", [1, "b"], ["1", "b"]),
    ("tags", ["B-x", "O"], ["B-x", "O"]),
    ("tags", "B-x O", ["B-x", "O"]),
    ("labels", ["a", "b", "a"], ["a", "b"]),
    ("labels", "a; b,c", ["a", "b,c"]),
    ("labels", "a, b", ["a", "b"]),
    ("labels", '["a, b", "c"]', ["a, b", "c"]),
    ("labels", "", []),
    ("labels", [], []),
    ("number", 3, 3.0),
    ("number", "-2.5e3", -2500.0),
    ("number", " 1 ", 1.0),
    ("numbers", [1, 2.5], [1.0, 2.5]),
    ("vectors", [[1, 2.5], [3, 4]], [[1.0, 2.5], [3.0, 4.0]]),
    ("vectors", "[1, 2.5]", [[1.0], [2.5]]),
    ("numbers", "1, 2 3;4", [1.0, 2.0, 3.0, 4.0]),
    ("messages", CHAT, CHAT),
    ("messages", json.dumps(CHAT), CHAT),
    ("messages", [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}], CHAT),
]


@pytest.mark.parametrize(("kind", "value", "cell"), READ)
def test_a_cell_is_read(kind, value, cell, write):
    assert rows_of(write, [value], one(kind)) == [cell]


REFUSED = [
    ("words", [], "empty x"),
    ("words", "  ", "empty x"),
    ("words", None, "missing x"),
    ("words", 3, "the x is a int, not a list"),
    ("words", ["a", None], "the x is a NoneType, not text"),
    ("words", '["a", "b', "the x begin as a list in JSON and are none: "),
    ("words", ["\ud800"], "not UTF-8"),
    ("tags", ["O", " "], "the x have an empty one, number 2"),
    ("labels", None, "missing x"),
    ("labels", {"a": 1}, "the x is a dict, not a list"),
    ("number", "", "empty x"),
    ("number", "three", "the x is 'three', not a finite number"),
    ("number", "nan", "the x is 'nan', not a finite number"),
    ("number", "1e999", "the x is '1e999', not a finite number"),
    ("number", True, "the x is a bool, not a number"),
    ("numbers", [1, "x"], "the x, number 2, is 'x', not a finite number"),
    ("numbers", [1, None], "the x, number 2, is a NoneType, not a number"),
    ("numbers", [], "empty x"),
    ("vectors", [[1, 2], [3]], "the x have 2 numbers in row 1, 1 in 2"),
    ("vectors", [[1, "a"]], "the x, row 1, number 2, is 'a', not a finite number"),
    ("messages", [], "empty x"),
    ("messages", "Hello", "message 1 of the x is a str, no object"),
    ("messages", [{"role": "bear", "content": "x"}], "message 1 has the role 'bear', not one of"),
    ("messages", [CHAT[0], {"role": "assistant"}], "message 2 has no text in its content"),
    ("messages", [{"role": "user", "content": [{}]}], "message 1 has no text in its content"),
]


@pytest.mark.parametrize(("kind", "value", "reason"), REFUSED)
def test_a_cell_is_refused_with_its_line(kind, value, reason, write):
    good = next(good for known, good, _ in READ if known == kind)
    path = write("x.jsonl", [{"x": good}, {"x": value}])
    with pytest.raises(InputError) as error:
        read_rows(path, one(kind))
    assert f"{path}, line 2: {reason}" in str(error.value)
    assert len(read_rows(path, one(kind), skip_bad_rows=True)[0]) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_of_json_that_are_none(value, write):
    with pytest.raises(InputError, match=r"line 1: (the x is inf, not a finite number|empty x)"):
        rows_of(write, [value], one("number"))


def test_a_number_that_is_not_needed_may_be_absent(write):
    path = write("x.csv", "text,x\na,1\nb,\n")
    columns = (Column("text", ()), Column("x", (), kind="number", required=False))
    assert read_rows(path, columns)[0]["x"][:] == [1.0, None]


@pytest.mark.parametrize("kind", ["words", "labels", "number", "numbers"])
def test_every_format_says_the_same(kind, write, suffix):
    value = {"number": 2.5, "numbers": [1.0, 2.5]}.get(kind, ["a", "b"])
    cell = json.dumps(value) if suffix in (".csv", ".tsv") else value
    found, _ = read_rows(write(f"x{suffix}", [{"x": cell}, {"x": cell}]), one(kind))
    assert found["x"][:] == [value, value]


class TestTagsOfWords:
    def test_as_many_as_words(self, write):
        path = write("x.jsonl", [{"words": ["Ada", "wrote"], "tags": ["B-person", "O"]}])
        found, _ = read_rows(path, (WORDS, TAGS))
        assert found[0] == {"tokens": ["Ada", "wrote"], "tags": ["B-person", "O"]}

    def test_ragged_ones_are_refused(self, write):
        path = write("x.jsonl", [{"words": ["Ada", "wrote"], "tags": ["O"]}])
        with pytest.raises(InputError, match=r"x\.jsonl, line 1: 1 tags for 2 words"):
            read_rows(path, (WORDS, TAGS))

    def test_classes_of_the_hub_in_lists_become_names(self, tmp_path):
        features = datasets.Features(
            {
                "tokens": datasets.List(datasets.Value("string")),
                "tags": datasets.List(datasets.ClassLabel(names=["O", "B-x"])),
            }
        )
        made = {"tokens": [["a", f"b{i}"] for i in range(20)], "tags": [[0, 1]] * 20}
        datasets.Dataset.from_dict(made, features).save_to_disk(tmp_path / "saved")
        splits = load(str(tmp_path / "saved"), (WORDS, TAGS))
        assert splits.train["tags"][0] == ["O", "B-x"]

    def test_a_tag_that_train_lacks(self, write):
        write("data/train.jsonl", [{"tokens": [f"a{i}"], "tags": ["B-person"]} for i in range(9)])
        folder = write("data/test.jsonl", [{"tokens": ["a"], "tags": ["B-preson"]}]).parent
        expected = r"test\.jsonl, line 1: tags 'B-preson' does not occur in .*; nearest: 'B-person'"
        with pytest.raises(InputError, match=expected):
            load(str(folder), (WORDS, TAGS))


class TestSplits:
    def test_numbers_are_held_out_at_random(self, write):
        path = write("x.csv", [{"text": f"t{i}", "score": i / 7} for i in range(50)])
        columns = (Column("text", ()), Column("score", (), kind="number"))
        splits = load(str(path), columns)
        assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [40, 5, 5]
        assert "at random" in splits.notes[0]
        assert splits.train.features["score"] == datasets.Value("float64")

    @pytest.mark.parametrize("seed", range(5))
    def test_every_label_of_several_stays_in_train(self, seed, write):
        rows = [
            {"text": f"t{i}", "labels": ["a"] if i % 9 else ["a", f"rare{i}"]} for i in range(90)
        ]
        columns = (Column("text", ()), Column("labels", (), kind="labels"))
        splits = load(str(write("x.jsonl", rows)), columns, seed=seed)
        learned = {name for names in splits.train["labels"] for name in names}
        assert len(learned) == 11
        assert splits.train.features["labels"] == datasets.List(datasets.Value("string"))

    def test_sentences_that_train_has_too_are_noted(self, write):
        rows = [{"tokens": ["a", str(i)], "tags": ["O", "B-x"]} for i in range(20)]
        write("data/train.jsonl", rows)
        write("data/val.jsonl", [*rows[:2], {"tokens": ["new"], "tags": ["O"]}])
        folder = write("data/test.jsonl", [{"tokens": ["newer"], "tags": ["O"]}]).parent
        assert load(str(folder), (WORDS, TAGS)).notes == (
            "2 of the 3 rows of validation have the same tokens as a row of train, so its scores "
            "flatter.",
        )

    def test_chats(self, write):
        rows = [{"messages": [{**CHAT[0], "content": f"Hello {i}"}, CHAT[1]]} for i in range(20)]
        columns = (Column("messages", (), kind="messages"),)
        splits = load(str(write("x.jsonl", rows)), columns)
        assert splits.train[0]["messages"][1] == CHAT[1]
        assert len(splits.train) == 16
