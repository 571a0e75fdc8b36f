"""`trimtab data check`: what is found, as text, JSON and a page, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_media import png, wav

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.data.check import check
from trimtab.data.page import render

DATA = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data on this machine")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def trimtab(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "data", "check", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr or done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout if code != 2 else done.stderr


@pytest.fixture
def folder(write, reviews):
    """Of train two rows are the same with two labels, one is nearly empty, one is broken."""
    odd = [{"text": "twice", "label": "good"}, {"text": "twice", "label": "bad"}]
    rows = [*reviews(60), *odd, {"text": "?", "label": "rare"}, {"text": "", "label": "good"}]
    write("data/train.csv", rows)
    unseen = {"text": "new", "label": "goood"}
    return write("data/test.csv", [*reviews(3), *reviews(5, 90), unseen]).parent


class TestFindings:
    def test_of_a_folder(self, folder, columns):
        found = check(str(folder), columns)
        splits = {split.name: split for split in found.splits}
        assert list(splits) == ["train", "validation", "test"]
        train, validation, test = splits.values()
        assert [(f.line, f.reason) for f in train.faults] == [(65, "empty text")]
        assert [f.line for f in test.faults] == [10]
        assert "label 'goood' does not occur" in test.faults[0].reason
        assert found.broken == 2
        assert (test.rows, test.shared) == (8, 3)
        assert validation.made
        assert 6 <= validation.rows <= 7, "with both that are alike, or with none"
        assert train.rows + validation.rows == 63
        assert train.duplicates + validation.duplicates == 1
        assert validation.shared == 0
        assert "rare" in found.rare
        assert train.empty == (64,)
        assert found.label == "label"
        assert found.problems == ()

    def test_contradictions(self, write, reviews, columns):
        odd = [{"text": "twice", "label": "good"}, {"text": "twice", "label": "bad"}]
        folder = write("data/train.csv", [*reviews(60), *odd]).parent
        for split in ("validation", "test"):
            write(f"data/{split}.csv", reviews(3, 100))
        assert check(str(folder), columns).contradictions == 2

    def test_columns(self, write, columns):
        path = write(
            "x.csv", [{"id": i, "review": f"t{i}", "label": "ab"[i % 2]} for i in range(30)]
        )
        found = check(str(path), (*columns, Column("pair", (), required=False)))
        taken = [(one.name, one.kind, one.found) for one in found.columns]
        assert taken == [
            ("text", "text", "review"),
            ("label", "label", "label"),
            ("pair", "text", None),
        ]
        assert found.unused == ("id",)

    def test_lengths_against_a_limit(self, write, text_only):
        path = write("x.txt", "".join(f"{'a' * (i + 1)}\n" for i in range(100)))
        found = check(str(path), text_only, count=lambda texts: list(map(len, texts)), limit=80)
        (lengths,) = found.lengths
        assert (lengths.unit, lengths.limit, lengths.over) == ("tokens", 80, 0.2)
        assert (lengths.percentiles[0], lengths.percentiles[100]) == (1, 100)
        assert sum(n for _, _, n in lengths.histogram) == 100

    def test_a_run_would_refuse_one_label(self, write, columns):
        path = write("x.csv", [{"text": f"t{i}", "label": "a"} for i in range(30)])
        (problem,) = check(str(path), columns).problems
        assert "one label only" in problem

    def test_pictures_and_sounds(self, tmp_path):
        label = Column("label", (), kind="label")
        for i in range(40):
            png(tmp_path / "i" / "ab"[i % 2] / f"{i}.png", i // 2 if i > 37 else i)
            wav(
                tmp_path / "a" / "ab"[i % 2] / f"{i}.wav", pitch=300 + i, rate=8000 + 8000 * (i < 3)
            )
        found = check(str(tmp_path / "i"), (Column("image", (), kind="image"), label))
        assert found.lengths[0].unit == "pixels of the longer side"
        assert sum(split.duplicates + split.shared for split in found.splits) == 2
        found = check(str(tmp_path / "a"), (Column("audio", (), kind="audio"), label))
        assert found.lengths[0].percentiles[100] == pytest.approx(0.2)
        assert "The audio has several sampling rates: 8,000 (37 rows), 16,000 (3" in found.notes[-1]

    def test_what_is_not_there_is_an_error(self, columns, tmp_path):
        with pytest.raises(InputError, match="no file or folder"):
            check(str(tmp_path / "no.csv"), columns)


class TestCommand:
    def test_text(self, folder):
        out = trimtab(folder, "--model", "minilm", code=1)
        assert f"broken: {folder / 'train.csv'}, line 65: empty text" in out
        assert f"broken: {folder / 'test.csv'}, line 10: label 'goood' does not occur" in out
        assert "near empty: " in out
        assert re.search(r"^text +tokens .* 512 +0\.0 %", out, re.MULTILINE)
        assert re.search(r"^good +\d+ .*█{30}", out, re.MULTILINE)
        assert re.search(r"^test +8 +1 +0 +3 +0", out, re.MULTILINE)
        assert "under-represented in train: " in out

    def test_json_and_a_page(self, write, reviews, tmp_path):
        path = write("x.csv", reviews(60))
        found = json.loads(trimtab(path, "--json", "--out", tmp_path / "x.html"))
        assert [split["rows"] for split in found["splits"]] == [48, 6, 6]
        assert found["broken"] == 0
        page = (tmp_path / "x.html").read_text("utf8")
        assert page.count("Plotly.newPlot(") >= 2
        assert "default-src 'none'" in page
        assert "<script src" not in page

    def test_other_tasks_and_names_of_columns(self, write):
        path = write("x.jsonl", [{"w": ["a", str(i)], "t": ["O", "B-x"]} for i in range(30)])
        names = ("--column", "tokens=w", "--column", "tags=t")
        out = trimtab(path, "--task", "token-classification", *names)
        assert re.search(r"^tokens +words +w", out, re.MULTILINE)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("no.csv",), "no file or folder of this name"),
            (("no.csv", "--task", "text-clasification"), "nearest: 'text-classification'"),
            (("no.csv", "--column", "text"), "--column takes name=value, not 'text'"),
        ],
    )
    def test_wrong_use(self, arguments, message, tmp_path):
        where, *others = arguments
        assert message in trimtab(tmp_path / where, *others, code=2)

    def test_a_column_that_is_not_there(self, write):
        path = write("x.csv", "txt,label\na,b\n")
        assert "has no column for the text" in trimtab(path, code=2)

    @shared
    def test_real_data(self):
        out = trimtab(DATA / "snips_intents")
        assert re.search(r"^test, held out +1,378 ", out, re.MULTILINE)


def test_names_in_the_page_are_text(write, columns):
    evil = "</script><img src=x onerror=alert(1)>"
    rows = [{"text": f"t{i}", "label": evil if i % 2 else "b"} for i in range(40)]
    page = render(check(str(write("x.csv", rows)), columns), evil)
    assert evil not in page
    assert "<img" not in page
