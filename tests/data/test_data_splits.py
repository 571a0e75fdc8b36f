"""Splits that are made: their sizes, strata, determinism; what the notes say of all of them."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.data import Column, load, read_rows
from trimtab.data.docstrings import docstrings
from trimtab.data.rows import Rows
from trimtab.data.splits import hold_out


def parts(splits):
    return splits.train, splits.validation, splits.test


def test_one_file_is_split_80_10_10_in_equal_shares_of_each_label(write, reviews, columns):
    splits = load(str(write("x.csv", reviews(300))), columns)
    assert [Counter(part["label"][:]) for part in parts(splits)] == [
        {"good": 160, "bad": 80},
        {"good": 20, "bad": 10},
        {"good": 20, "bad": 10},
    ]
    texts = [text for part in parts(splits) for text in part["text"][:]]
    assert sorted(texts) == sorted(row["text"] for row in reviews(300))
    assert len(splits.notes) == 1
    assert (
        "in equal shares of each label: validation (30 rows) and test (30 rows); seed 0"
        in (splits.notes[0])
    )


@pytest.mark.parametrize("given_split", ["validation", "test"])
def test_an_absent_split_is_a_tenth_of_train(given_split, write, reviews, columns):
    write("data/train.csv", reviews(100))
    folder = write(f"data/{given_split}.csv", reviews(8, 100)).parent
    splits = load(str(folder), columns)
    made = splits.test if given_split == "validation" else splits.validation
    kept = splits.validation if given_split == "validation" else splits.test
    assert (len(splits.train), len(made), len(kept)) == (90, 10, 8)
    assert not set(splits.train["text"][:]) & set(made["text"][:])


def test_a_rare_label_is_not_held_out_of_train(write, reviews, columns):
    rows = [*reviews(40), {"text": "odd", "label": "rare"}]
    for seed in range(20):
        splits = load(str(write("x.csv", rows)), columns, seed=seed)
        assert "rare" in splits.train["label"][:]
    assert "at random" in splits.notes[0]


def test_a_label_of_one_row_is_told(write, reviews, columns):
    mistyped = {"text": "odd", "label": "goood"}
    notes = load(str(write("x.csv", [*reviews(40), mistyped])), columns).notes
    (note,) = (note for note in notes if "goood" in note)
    assert note.startswith("The label 'goood' occurs once in 3")
    assert "nearest: 'good'" in note


def test_labels_of_their_own_are_no_labels(write, columns):
    """Texts and labels exchanged, or a column of numbers."""
    rows = [{"text": "good", "label": f"a film of {n} hours"} for n in range(30)]
    path = write("x.csv", rows)
    with pytest.raises(InputError, match=r"30 different labels in 30 rows.*is this the label"):
        load(str(path), columns)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcd"), min_size=5, max_size=80), st.integers(0, 10**6))
def test_every_held_out_label_is_in_train_and_no_row_is_lost(labels, seed):
    numbers = [str(i) for i in range(len(labels))]
    rows = Rows("x", {"text": numbers, "label": labels}, list(range(len(labels))))
    # one row of each label stays in train, and there must be enough beside them
    assume(len(labels) - len(set(labels)) >= 2 * (len(labels) // 10 + 1))
    made, _ = hold_out(rows, ["validation", "test"], "label", seed)
    assert sorted(n for part in made.values() for n in part.columns["text"]) == sorted(numbers)
    assert set(made["train"].columns["label"]) == set(labels)
    assert len(made["test"]) == len(made["validation"]) == (len(labels) + 5) // 10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=60), st.integers(0, 99))
def test_rows_that_are_alike_stay_on_one_side(texts, seed):
    """Else a model would be measured on what it was trained on; with whichever labels."""
    labels = [str((i + ord(text)) % 2) for i, text in enumerate(texts)]
    assume(len(set(texts)) >= 20)
    rows = Rows("x", {"text": texts, "label": labels}, list(range(len(texts))))
    made, _ = hold_out(rows, ["validation", "test"], "label", seed, ["text"])
    sides = [set(part.columns["text"]) for part in made.values()]
    assert sum(map(len, sides)) == len(set().union(*sides)) == len(set(texts))
    assert sorted(n for part in made.values() for n in part.lines) == list(range(len(texts)))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_there_often_is_held_out_no_more_often(seed):
    """20 texts of 20 copies each, and 600 that are there once."""
    texts = [f"often {i % 20}" for i in range(400)] + [f"once {i}" for i in range(600)]
    rows = Rows("x", {"text": texts, "label": ["a", "b"] * 500}, list(range(1000)))
    made, _ = hold_out(rows, ["validation", "test"], None, seed, ["text"])
    for split in ("validation", "test"):
        assert 80 <= len(made[split]) <= 100
        assert sum("often" in text for text in made[split].columns["text"]) <= 80
    assert len(made["train"]) >= 800


@pytest.mark.parametrize("different", [1, 3, 5])
def test_too_few_different_rows_are_held_out_row_by_row_and_the_note_says_so(different):
    texts = [f"text {i % different}" for i in range(30)]
    rows = Rows("x", {"text": texts, "label": ["a", "b"] * 15}, list(range(30)))
    made, note = hold_out(rows, ["validation", "test"], "label", 0, ["text"])
    assert len(made["validation"]) == len(made["test"]) == 3
    assert "Too few of them are different" in note
    assert "Too few" not in hold_out(rows, ["validation", "test"], "label", 0)[1]


def test_references_of_one_source_are_not_parted(write):
    from trimtab.tasks import lookup

    told = [{"source": f"facts {i % 30}", "target": f"sentence {i}"} for i in range(240)]
    splits = load(str(write("x.jsonl", told)), lookup("text2text-generation", {}).columns)
    sources = [set(getattr(splits, split)["source"]) for split in ("train", "validation", "test")]
    assert sum(map(len, sources)) == 30


def test_too_few_rows_to_hold_any_out(write, columns):
    path = write("x.csv", "text,label\na,x\nb,y\n")
    with pytest.raises(InputError, match="2 rows, too few to hold some out for validation and te"):
        load(str(path), columns)


def test_the_seed_decides(write, reviews, columns):
    path = str(write("x.csv", reviews(100)))
    first, again, other = (load(path, columns, seed=seed) for seed in (1, 1, 2))
    assert first.test["text"][:] == again.test["text"][:]
    assert first.test["text"][:] != other.test["text"][:]


def test_another_process_makes_the_same_splits(write, reviews, columns):
    path = str(write("x.csv", reviews(60)))
    script = (
        "import json, sys; from trimtab.data import Column, load\n"
        "from trimtab.data.docstrings import docstrings\n"
        "columns = Column('text', ()), Column('label', (), kind='label')\n"
        "both = load(sys.argv[1], columns, seed=5), docstrings(5)\n"
        "print(json.dumps([s.test.to_dict() for s in both]))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", script, path],
        env={**os.environ, "PYTHONHASHSEED": "7"},  # here it is another, as a rule a random one
        capture_output=True,
        check=True,
        text=True,
    )
    here = load(path, columns, seed=5), docstrings(5)
    assert json.loads(elsewhere.stdout) == [splits.test.to_dict() for splits in here]


def test_texts_shared_with_train_are_counted_and_kept(write, reviews, columns):
    write("data/train.csv", reviews(30))
    write("data/validation.csv", reviews(5, 30))
    folder = write("data/test.csv", reviews(10, 26)).parent
    splits = load(str(folder), columns)
    assert splits.notes == (
        "4 of the 10 rows of test have the same text as a row of train, so its scores flatter.",
    )
    assert len(splits.test) == 10


class TestColumns:
    def test_are_found_by_alias_in_any_case(self, write, columns):
        path = write("x.csv", "ID, Review ,INTENT\n1,fine,yes\n")
        assert read_rows(path, columns)[0].to_list() == [{"text": "fine", "label": "yes"}]

    def test_the_first_alias_wins(self, write, columns):
        path = write("x.csv", "title,sentence,label\nno,yes,a\n")
        assert read_rows(path, columns)[0]["text"][:] == ["yes"]

    def test_the_users_name_wins_and_is_not_taken_twice(self, write, columns):
        path = write("x.csv", "text,label,intent\na,b,c\n")
        rows, _ = read_rows(path, columns, names={"text": "label"})
        assert rows.to_list() == [{"text": "b", "label": "c"}]

    def test_labels_are_stripped_and_texts_are_not(self, write, columns):
        path = write("x.csv", "text,label\n a , b \n")
        assert read_rows(path, columns)[0].to_list() == [{"text": " a ", "label": "b"}]

    def test_an_optional_column_may_be_absent_or_empty(self, write, columns):
        wanted = (*columns, Column("pair", (), required=False))
        assert read_rows(write("x.csv", "text,label\na,b\n"), wanted)[0].column_names == [
            "text",
            "label",
        ]
        rows, _ = read_rows(write("y.csv", "text,label,pair\na,b,\n"), wanted)
        assert rows["pair"][:] == [""]

    def test_an_optional_column_must_be_in_every_split_to_be_used(self, write, reviews, columns):
        wanted = (*columns, Column("pair", (), required=False))
        write("data/train.csv", [{**row, "pair": "p"} for row in reviews(30)])
        folder = write("data/test.csv", reviews(5, 30)).parent
        assert [part.column_names for part in parts(load(str(folder), wanted))] == [
            ["text", "label"]
        ] * 3

    def test_without_a_label_splits_are_random(self, write, reviews, text_only):
        splits = load(str(write("x.csv", reviews(100))), text_only)
        assert [len(part) for part in parts(splits)] == [80, 10, 10]
        assert "at random" in splits.notes[0]
