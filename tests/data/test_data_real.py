"""Real data sets, of every size and shape that the project is tried on."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.data import load

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data on this machine")


@pytest.mark.parametrize(
    ("name", "sizes", "labels"),
    [
        ("rotten_tomatoes", (8530, 1066, 1066), 2),
        ("subjectivity", (8000, 1000, 1000), 2),
        ("snips_intents", (13784 - 1378, 700, 1378), 7),
        ("banking77", (10003 - 1000, 1000, 3080), 77),
    ],
)
def test_a_folder_loads_whole(name, sizes, labels, columns):
    splits = load(str(DATA / name), columns)
    found = (splits.train, splits.validation, splits.test)
    assert tuple(map(len, found)) == sizes
    assert len(set(splits.train["label"][:])) == labels
    assert all(part.column_names == ["text", "label"] for part in found)


def test_leaks_that_the_data_came_with_are_noted(columns):
    splits = load(str(DATA / "snips_intents"), columns)
    shared = set(splits.train["text"][:])
    n = sum(text in shared for text in splits.validation["text"][:])
    assert n > 0
    assert [note for note in splits.notes if "rows of validation" in note] == [
        f"{n:,} of the 700 rows of validation have the same text as a row of train, "
        "so its scores flatter."
    ]


def test_columns_of_another_task_are_not_taken_for_text(columns):
    with pytest.raises(InputError, match="Its columns are 'mr', 'ref'; name the right one with"):
        load(str(DATA / "e2e_nlg" / "devset.csv"), columns)
