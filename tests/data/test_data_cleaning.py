"""What cleaning leaves out and mends, and what it never touches."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.data import Column, load
from trimtab.data.cleaning import STEPS
from trimtab.tune.config import parse
from trimtab.tune.session import read_data

COLUMNS = (Column("text", ()), Column("label", (), kind="label"))
ROWS = [(f"a sentence of its own, number {i}", "ab"[i % 2]) for i in range(40)]
HELD_OUT = [("held out, one", "a"), ("held out, two", "b"), ("schÃ¶n", "a"), ("...", "b")]


def written(folder: Path, extra: list[tuple[str, str]]) -> str:
    for split, rows in (("train", ROWS + extra), ("validation", HELD_OUT), ("test", HELD_OUT)):
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + lines, "utf8")
    return str(folder)


@pytest.mark.parametrize(
    ("step", "row", "left"),
    [
        ("duplicates", ROWS[3], 40),
        ("duplicates", (ROWS[3][0], "a"), 41),  # with another label: which is right, nobody knows
        ("empty", ("--", "a"), 40),
        ("overlap", HELD_OUT[0], 40),
        ("encoding", ("fÃ¼r", "a"), 41),
    ],
)
def test_a_step_does_what_it_says_and_says_it(
    tmp_path: Path, step: str, row: tuple[str, str], left: int
) -> None:
    source = written(tmp_path, [row])
    plain, made = load(source, COLUMNS), load(source, COLUMNS, tidied=[step])
    assert (len(plain.train), len(made.train)) == (41, left)
    changed = [note for note in made.notes if "left out" in note or "mended" in note]
    assert len(changed) == (left == 40 or step == "encoding")
    if step == "encoding":
        assert (plain.train["text"][-1], made.train["text"][-1]) == ("fÃ¼r", "für")
        assert made.test["text"][2] == "schön"
    else:
        assert made.test["text"] == plain.test["text"]


def test_splits_that_are_made_share_no_text(tmp_path: Path) -> None:
    """Though every text is there twice."""
    source = tmp_path / "rows.tsv"
    lines = "".join(f"{text}\t{label}\n" for text, label in [*ROWS, *ROWS])
    source.write_text("text\tlabel\n" + lines, "utf8")
    plain, made = load(str(source), COLUMNS), load(str(source), COLUMNS, tidied=["overlap"])
    assert not any("flatter" in note for note in plain.notes)
    assert plain.train["text"][:] == made.train["text"][:]
    texts = [set(getattr(plain, split)["text"]) for split in ("train", "validation", "test")]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_the_order_of_steps_does_not_matter(tmp_path: Path) -> None:
    source = written(tmp_path, [ROWS[0], ("fÃ¼r", "a"), ("für", "a"), ("!", "b")])
    found = [load(source, COLUMNS, tidied=order) for order in (list(STEPS), list(STEPS)[::-1])]
    assert found[0].train["text"] == found[1].train["text"]
    assert len(found[0].train) == 41  # both spellings of one word are one


def test_a_step_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--clean duplicate: no such step.*duplicates"):
        load(written(tmp_path, []), COLUMNS, tidied=["duplicate"])


def test_a_run_records_it(tmp_path: Path) -> None:
    source = written(tmp_path, [ROWS[0]])
    fields = {"model": "minilm", "data": source, "out": "run", "clean": "duplicates,overlap"}
    config = parse(fields, "the test")
    assert config.clean == ["duplicates", "overlap"]
    told = "1 row of train that came before was left out"
    assert any(told in note for note in read_data(config).notes)
