"""Tagged sentences (CoNLL) and plain texts."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.data import Column, load, read_rows

COLUMNS = (
    Column("tokens", (), kind="words"),
    Column("tags", ("ner_tags",), kind="tags"),
)
TEXT = (Column("text", ()),)
DATA = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data on this machine")

TWO = [
    {"tokens": ["Ada", "wrote"], "tags": ["B-person", "O"]},
    {"tokens": ["Rome"], "tags": ["B-place"]},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.conll", "Ada\tB-person\nwrote\tO\n\nRome\tB-place\n"),
        ("x.conll", "Ada\tB-person\r\nwrote\tO\r\n\t\r\n\r\nRome\tB-place"),
        ("x.iob", "Ada B-person\nwrote O\n \nRome B-place\n\n\n"),
        ("x.annotated", "\n\nAda NNP x B-person\nwrote VB y O\n\nRome NNP z B-place\n"),
        ("x.conll", "-DOCSTART- O\n\nAda B-person\nwrote O\n\n# a comment\nRome B-place\n"),
    ],
)
def test_sentences(name, content, write):
    assert list(read_rows(write(name, content), COLUMNS)[0]) == TWO


def test_a_hashtag_is_no_comment(write):
    found, _ = read_rows(write("x.iob", "# O\nAda B-person\n"), COLUMNS)
    assert found[0]["tokens"] == ["#", "Ada"]


def test_words_alone_can_be_tagged(write):
    found, _ = read_rows(write("x.conll", "Ada\nwrote\n\nRome\n"), COLUMNS[:1])
    assert found["tokens"][:] == [["Ada", "wrote"], ["Rome"]]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"Ada\tB-x\nwrote\n\nRome\tB-y\n", 2, "1 column where the file has 2"),
        (b"Rome\tB-y\n\nAda\tx\tB-x\nin\tO\n", 3, "3 columns where the file has 2"),
        (b"Rome\tB-y\n\nAda\t\nin\tO\n", 3, "the tags have an empty one, number 1"),
        (b"Rome\tB-y\n\nin\tO\n\xff\tO\n", 3, "not UTF-8"),
    ],
)
def test_a_broken_sentence_is_named_by_its_line(content, line, reason, write):
    path = write("x.conll", content)
    with pytest.raises(InputError) as error:
        read_rows(path, COLUMNS)
    assert f"{path}, line {line}: {reason}" in str(error.value)
    assert len(read_rows(path, COLUMNS, skip_bad_rows=True)[0]) == 1


@shared
def test_wnut17_is_read_as_it_lies_there():
    splits = load(str(DATA / "wnut17"), COLUMNS)
    assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [3394, 1009, 1287]
    assert sum(map(len, splits.train["tokens"][:])) == 62730
    begun = [tag for tags in splits.train["tags"] for tag in tags if tag.startswith("B-")]
    assert len(begun) == 1975


class TestPlainTexts:
    def test_lines(self, write):
        found, _ = read_rows(write("x.txt", "one\n  two\n\xa0\nthree \n" + "more\n" * 20), TEXT)
        assert found["text"][:4] == ["one", "  two", "three", "more"]

    def test_paragraphs(self, write):
        found, _ = read_rows(write("x.txt", "A\nspeech.\n\n\nAnother.\n"), TEXT)
        assert found["text"][:] == ["A\nspeech.", "Another."]

    def test_a_line_that_is_no_text(self, write):
        with pytest.raises(InputError, match=r"x\.txt, line 2: not UTF-8"):
            read_rows(write("x.txt", b"a\n\xff\nb\n"), TEXT)

    def test_a_folder_of_splits(self, write):
        write("data/train.txt", "".join(f"line {i}\n" for i in range(20)))
        folder = write("data/test.txt", "a\nb\n").parent
        splits = load(str(folder), TEXT)
        assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [18, 2, 2]

    @shared
    def test_speeches_of_shakespeare(self):
        found, _ = read_rows(DATA / "tinyshakespeare" / "input.txt", TEXT)
        assert found[0]["text"].startswith("First Citizen:\nBefore we proceed")
        assert len(found) == 7222
