"""What `benchmarks/tasks/prepare.py` makes of real data sets of every kind is read whole."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from trimtab.data import Column, load, media

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data on this machine")

TEXT, LABEL = Column("text", ()), Column("label", (), kind="label")
PAIR = (Column("source", ()), Column("target", ()))
IMAGE = Column("image", (), kind="image")
NUMBERS = (Column("past", (), kind="numbers"), Column("future", (), kind="numbers"))

EXPECTED = {  # name -> columns, sizes of train, validation, test
    "adult": ((TEXT, LABEL), (29305, 3256, 16281)),
    "bccd_detection": ((IMAGE, Column("boxes", (), kind="boxes")), (61, 21, 24)),
    "cmudict": (PAIR, (50000, 5000, 5000)),
    "codexglue_java_cs": (PAIR, (10295, 499, 1000)),
    "delaney": ((TEXT, Column("score", (), kind="number")), (902, 112, 114)),
    "e2e_nlg": (PAIR, (4205, 467, 4693)),
    "ett": (NUMBERS, (2401, 819, 819)),
    "fsdd_spoken_digits": ((Column("audio", (), kind="audio"), LABEL), (480, 120, 120)),
    "isbi_membrane_segmentation": ((IMAGE, Column("mask", (), kind="mask")), (20, 4, 6)),
    "mnist_t10k": ((IMAGE, LABEL), (8000, 1000, 1000)),
    "scitldr": (PAIR, (1992, 619, 618)),
    "self_instruct": ((Column("messages", (), kind="messages"),), (157, 18, 252)),
    "tinyshakespeare": ((TEXT,), (5777, 722, 723)),
    "tox21": ((TEXT, Column("labels", (), kind="labels")), (2488, 311, 312)),
    "wikitext2": ((TEXT,), (1160, 648, 672)),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """prepared(name) -> the folder that is made of a shared data set."""
    path = ROOT / "benchmarks" / "tasks" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("prepared")

    def prepared(name):
        if not (out / name).exists():
            module.PREPARE[name](DATA / name, out / name)
        return str(out / name)

    return prepared


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_is_read(name, prepared):
    columns, sizes = EXPECTED[name]
    splits = load(prepared(name), columns)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == sizes


def test_digits_are_the_digits_they_were(prepared):
    splits = load(prepared("mnist_t10k"), EXPECTED["mnist_t10k"][0])
    assert splits.train["label"][:10] == list("7210414959")
    ink = np.asarray(media.image(splits.train["image"][0])).mean()
    assert 20 < ink < 40


def test_a_spoken_digit_is_heard(prepared):
    splits = load(prepared("fsdd_spoken_digits"), EXPECTED["fsdd_spoken_digits"][0])
    assert sorted(set(splits.test["label"])) == list("0123456789")
    cell = splits.test["audio"][0]
    wave = media.audio(cell, 16_000)
    assert len(wave) == pytest.approx(16_000 * media.seconds(cell), abs=2)
    assert 0.05 < np.abs(wave).max() <= 1.1


def test_windows_of_a_series_do_not_overlap_in_what_is_predicted(prepared):
    splits = load(prepared("ett"), NUMBERS)
    assert {len(past) for past in splits.train["past"]} == {336}
    last, first = splits.train["future"][342], splits.validation["future"][0]  # of one series
    assert len(last) == len(first) == 96
    assert last[-1] != first[0]
    assert not any("flatter" in note for note in splits.notes)
