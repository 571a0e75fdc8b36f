"""The page: complete, self-contained, escaped, honest where something is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser

import pytest

from trimtab.compare import charts
from trimtab.compare.report import Change, Row, render, scale, summary_sentence, write_report
from trimtab.core.errors import TrimtabError
from trimtab.evaluate.bootstrap import Interval


class Page(HTMLParser):
    """Tags, the addresses in their attributes, visible text, and the charts' JSON."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.charts, self.scripts = [], [], {}, []
        self.words, self._inside = [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        self._inside = (tag, given) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.words.append(data)
        elif "data-chart" in self._inside[1]:
            self.charts[self._inside[1]["data-chart"]] = json.loads(data)
        elif self._inside[0] == "script":
            self.scripts.append(data)


def marks(page: Page) -> list[str]:
    return [tag for tag, _ in page.tags]


def test_holds_everything_in_itself(report):
    page = Page(render(report))
    assert page.addresses == []
    assert "link" not in marks(page)
    assert not re.search(r"@import|url\(", render(report).split("</style>")[0])
    policy = next(given["content"] for _, given in page.tags if "http-equiv" in given)
    assert policy.startswith("default-src 'none'")
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1  # plotly.js, once


def test_shows_every_number(report):
    text = Page(render(report)).text
    for shown in [
        "0.644", "[0.615, 0.672]", "0.650", "+0.010", "[−0.004, +0.024] includes zero",
        "338,690", "(1.47 %)", "1 min 23 s", "11 s", "1.30 MiB", "18.6 KiB",
        "1,066 in the test split", "Gained: 231", "(20 shown)", "Lost: 12", "70 sites",
        "two cores, no accelerator", "3 rows are longer", "Example 19", "Docstrings with LoRA",
    ]:  # fmt: skip
        assert shown in text, shown
    assert "(12 shown)" not in text


def test_draws_four_charts_with_titled_axes(report):
    drawn = Page(render(report)).charts
    assert list(drawn) == ["losses", "quality", "inside", "outside"]
    for name in ("losses", "quality", "outside"):
        layout = drawn[name]["layout"]
        assert layout["xaxis"]["title"]["text"]
        assert layout["yaxis"]["title"]["text"]
    captions = [note["text"] for note in drawn["inside"]["layout"]["annotations"]]
    assert "attention.self.query  <b>36,864</b>" in captions
    assert captions[-1] == "trained parameters"
    assert len(drawn["inside"]["data"]) == 11


def test_whatever_comes_from_outside_stays_text(report, hostile):
    page, calm = Page(render(hostile)), Page(render(report))
    assert marks(page).count("script") == marks(calm).count("script")
    assert "img" not in marks(page)
    assert page.addresses == []
    assert page.text.count("<script>alert(1)</script>") == 20  # wherever a text is shown
    layouts = json.dumps([drawn["layout"] for drawn in page.charts.values()])
    assert "&lt;/script" in layouts
    assert "<script" not in layouts
    assert "<img" not in layouts


def test_a_name_is_no_template_to_plotly():
    figure = charts.quality([(1, 0.5, 0.5)], "%{x}<b>")
    drawn = json.loads(charts.as_json(figure))
    assert "%{x}<b>" not in json.dumps([trace["hovertemplate"] for trace in drawn["data"]])
    assert drawn["layout"]["yaxis"]["title"]["text"] == "validation %{x}&lt;b&gt;"


def test_a_sentence_stands_where_a_series_is_empty(bare):
    page = Page(render(bare))
    assert page.charts == {}
    assert page.scripts == []
    assert "figure" not in marks(page)
    for sentence in [
        "Nothing was evaluated.",
        "No training loss was recorded.",
        "not evaluated during training",
        "No parameters were trained.",
        "No example that was wrong is now right.",
        "No example that was right is now wrong.",
        "None were recorded.",
    ]:
        assert sentence in page.text
    assert "Notes" not in page.text


def test_validation_is_drawn_without_training_losses(report):
    page = Page(render(dataclasses.replace(report, losses=[])))
    assert [trace["name"] for trace in page.charts["losses"]["data"]] == ["validation"]
    assert "No training loss was recorded." in page.text


def test_rows_with_nothing_measured(report):
    rows = [Row("base", None, None, 0, None, None), Row("LoRA", None, None, 9, None, None)]
    page = Page(render(dataclasses.replace(report, rows=rows, total=None)))
    assert "svg" not in marks(page)
    assert "LoRA – – – 9 – –" in page.text


def test_undefined_numbers_do_not_break_the_page(report):
    undefined = Interval(math.nan, math.nan, math.nan, 5)
    rows = [Row("base", undefined, undefined, 0, None, None, undefined), *report.rows]
    broken = dataclasses.replace(report, rows=rows, losses=[(1, 0.5), (2, math.nan)])
    page = Page(render(broken))
    assert page.charts["losses"]["data"][0]["y"] == [0.5, None]
    assert "nan" not in render(broken).lower().split("<table>")[1].split("</table>")[0]


def test_the_same_report_gives_the_same_page(report):
    assert render(report) == render(report)


def test_sites_without_parameters(report):
    frozen = dataclasses.replace(report, sites=[("layers.0.q", 0), ("head", 0)])
    page = Page(render(frozen))
    assert page.charts["inside"]["layout"]["yaxis"]["range"] == [0, 1]
    assert "0 parameters were trained at 2 sites." in page.text


def test_long_examples_are_cut(report):
    long = dataclasses.replace(report, gained=[Change("word " * 1000, "a", "b", "a")])
    text = Page(render(long)).text
    assert text.count("word") == 100
    assert "word…" in text


def test_writes_whole_or_not_at_all(report, tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.html"
    write_report(report, path)
    assert path.read_text(encoding="utf-8") == render(report)

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(TrimtabError, match=r"cannot write .*no space"):
        write_report(dataclasses.replace(report, title="A second run"), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert "A second run" not in path.read_text(encoding="utf-8")


def test_a_broken_letter_does_not_cost_the_report(report, tmp_path):
    write_report(dataclasses.replace(report, notes=["half a pair: \ud800"]), tmp_path / "r.html")
    assert "half a pair: ?" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_summary_is_honest_about_zero(report):
    assert "Against “base” it is better: +0.732" in report.summary
    assert "Against “head only” the difference is +0.010 [−0.004, +0.024]" in report.summary
    assert "do not show which of the two is better" in report.summary
    assert "338,690 trained parameters (1.47 % of the model)" in report.summary


def test_summary_knows_metrics_where_less_is_better(report):
    told = summary_sentence(
        method="LoRA", model="m", metric="error", rows=report.rows, greater_is_better=False
    )
    assert "Against “base” it is worse: +0.732" in told


def test_summary_without_test_or_any_evaluation(report):
    adapted = report.rows[-1]
    words = {"method": "LoRA", "model": "m", "metric": "accuracy"}
    validated = dataclasses.replace(adapted, test=None)
    assert "a validation accuracy of 0.810" in summary_sentence(**words, rows=[validated])
    unknown = dataclasses.replace(validated, validation=None)
    assert "was not evaluated" in summary_sentence(**words, rows=[unknown])


def test_scale_has_round_ends_around_everything():
    drawn = scale([Interval(0.644, 0.615, 0.672, 9), Interval(0.805, 0.781, 0.828, 9)])
    assert (drawn.low, drawn.high) == pytest.approx((0.6, 0.85))
    assert (drawn(0.6), drawn(0.725), drawn(0.85)) == (0, 50, 100)
    assert scale([Interval(1.0, 1.0, 1.0, 9)]).high > 1
    assert scale([]) is None


def test_long_runs_are_thinned_to_what_a_screen_shows():
    points = charts.thin([(step, 1.0) for step in range(1, 100_001)])
    assert len(points) == charts.MOST_POINTS
    assert points[-1] == (100_000, 1.0)
    assert charts.thin([]) == []


def test_running_mean_keeps_a_line_a_line():
    line = [(step, 2.0 * step) for step in range(100)]
    assert charts.running_mean(line)[20:80] == line[20:80]
