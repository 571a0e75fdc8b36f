"""`trimtab compare` as a user runs it: killed, gone on with, and its report held to its runs."""

from __future__ import annotations

import copy
import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main
from trimtab.compare import campaign, processes
from trimtab.compare.collect import collect
from trimtab.compare.page import render
from trimtab.compare.request import parse
from trimtab.compare.schedule import Cell
from trimtab.core.errors import TrimtabError
from trimtab.evaluate.metrics import METRICS, difference
from trimtab.tune import answers as recorded
from trimtab.tune.phases import QUIET

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
WORDS = {
    "weather": ("rain", "sun", "wind", "snow", "storm", "fog"),
    "food": ("bread", "soup", "cheese", "apples", "rice", "honey"),
}
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trimtab", "compare", *arguments]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT
    )


def write_rows(path: Path) -> None:
    rows = [
        (f"{place} there was {word} {when}", label)
        for label, words in WORDS.items()
        for word in words
        for place in ("at home", "in town", "by the sea")
        for when in ("today", "again")
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison that was killed after its first run, and then gone on with."""
    folder = tmp_path_factory.mktemp("compare")
    write_rows(folder / "rows.csv")
    out = folder / "out"
    asked = [
        *("--model", "minilm", "--data", str(folder / "rows.csv"), "--out", str(out)),
        *("--methods", "bitfit,full", "--no-baselines", "--steps", "3", "--trials", "1"),
        *("--tune-arg", "batch_size=8", "--tune-arg", "dtype=float32"),
    ]
    first = out / "runs" / "minilm" / "bitfit"
    with subprocess.Popen(command(*asked), env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not list(first.glob("*all*/report.html")) and time.monotonic() < deadline:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    (metrics,) = first.glob("*all*/metrics.json")
    before = metrics.stat().st_mtime_ns
    again = call("--out", str(out), "--json")
    assert again.returncode == 0, again.stderr
    return {
        "out": out,
        "found": json.loads(again.stdout),
        "untouched": metrics.stat().st_mtime_ns == before,
    }


@pytest.mark.timeout(900)
def test_a_run_that_was_over_is_not_run_again(done: dict[str, Any]) -> None:
    assert done["untouched"]
    assert done["found"]["failed"] == {}
    assert [row["method"] for row in done["found"]["rows"]] == [
        *("base, untrained", "head, first", "few-shot", "bitfit", "full")
    ]


def resolve(out: Path, source: str) -> float:
    """`path#a.b` or `path#a+b`, read from the run's own file."""
    path, _, key = source.partition("#")
    block = json.loads((out / path).read_text())
    total = 0.0
    for part in key.split("+"):
        value = block
        for name in part.split("."):
            value = value[name]
        total += value
    return total


TOLD = {"test": ("test", "value"), "train.value": ("train", "value")}


def test_every_number_is_that_of_a_run(done: dict[str, Any]) -> None:
    out, seen = done["out"], 0
    page = (out / "report.html").read_text()
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert block is not None
    found = json.loads(block[1])
    assert found == done["found"] == json.loads((out / "compare.json").read_text())
    for row in found["rows"]:
        for key, sources in row["sources"].items():
            value: Any = row
            for name in TOLD.get(key, key.split(".")):
                value = value[name]
            read = [resolve(out, source) for source in sources]
            assert value == pytest.approx(sum(read) / len(read), rel=1e-12), (row["method"], key)
            seen += 1
        for point in row["curve"]:
            assert [point["value"]] == [resolve(out, source) for source in point["sources"]]
        for trial in row["trials"]:
            assert trial["validation"] == resolve(out, trial["source"])
    assert seen > 25


def test_differences_come_out_again_from_the_answers(done: dict[str, Any]) -> None:
    out, rows = done["out"], {row["method"]: row for row in done["found"]["rows"]}
    kept = {}
    for name in ("bitfit", "full"):
        found = recorded.read(out / rows[name]["folder"])
        assert found is not None
        kept[name], references = found[0]["adapted"], found[1]
    again = difference(METRICS["accuracy"], kept["bitfit"], kept["full"], references, seed=0)
    told = dict(rows["bitfit"]["against"])
    del told["shows"]
    assert told == again.as_dict()
    assert rows["full"]["against"] is None


def test_what_is_measured_of_a_run(done: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in done["found"]["rows"]}
    assert set(rows["bitfit"]["milliseconds"]) == {"base", "unmerged", "merged"}
    assert set(rows["full"]["milliseconds"]) == {"base", "unmerged"}
    for name in ("bitfit", "full"):
        assert rows[name]["forgetting"]["without"] == 0.0
        assert 0 <= rows[name]["forgetting"]["adapted"] <= 1
        assert [point["rows"] for point in rows[name]["curve"]] == [58]
        assert rows[name]["energy"]["training"]["joules"] > 0
    few = rows["few-shot"]
    assert few["kind"] == "neighbours"
    assert few["test"]["value"] >= 0.5
    assert rows["bitfit"]["bytes"] < rows["full"]["bytes"] / 20


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--methods", "lroa"), "lroa"),
        (("--methods", "lora", "--model", "no/such/model"), "no/such/model"),
        (("--methods", "fusion"), "fusion needs other adapters"),
        (("--task", "txt-classification"), "txt-classification"),
        (("--data", "absent.csv"), "absent.csv"),
        (("--sizes", "100000,all"), "--sizes 100000: there are 58 rows of train"),
        (("--methods", "lora", "--tune-arg", "target=q_prj"), "lora cannot run on minilm"),
        (("--method-arg", "rank=4"), "--method-arg lora.rank=4"),
        (("--probe", "absent.txt"), "--probe absent.txt cannot be read"),
    ],
)
def test_what_is_told_before_anything_is_run(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    given = {"--model": "minilm", "--data": "rows.csv", "--out": "new", "--methods": "bitfit"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    asked = [part for pair in given.items() for part in pair]
    monkeypatch.setattr(sys, "argv", ["trimtab", "compare", *asked, "--no-baselines"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Its data have gone since they were checked."""
    fields = {"models": "minilm", "data": str(tmp_path / "gone.csv"), "out": str(tmp_path / "out")}
    course = campaign.Course(parse(fields, "test"), QUIET)
    cell = Cell("minilm", "bitfit", None, 2e-3, 0)
    campaign._tune(course, cell)
    assert course.metrics == {}
    assert "gone.csv" in course.failed[str(cell.place)]
    kept = json.loads((tmp_path / "out" / cell.place / processes.FAILED).read_text())
    assert (kept["error"], kept["exit_code"]) == (course.failed[str(cell.place)], 2)
    with pytest.raises(TrimtabError, match=r"no run came to its end; .*gone\.csv"):
        collect(course)


WITNESS = """<script>
  const refused = [];
  addEventListener("securitypolicyviolation", (event) => refused.push(event.blockedURI));
  addEventListener("load", () => setTimeout(() => {
    document.title = JSON.stringify({
      refused,
      asked: performance.getEntriesByType("resource").map((entry) => entry.name),
      dots: [...document.querySelectorAll("svg.sheet")].map((sheet) =>
        [sheet.id, sheet.querySelectorAll(".dot").length]),
      outside: [...document.querySelectorAll("svg.sheet .word")].filter((word) => {
        const box = word.getBBox();
        return box.x < 0 || box.x + box.width > 462;
      }).length,
      links: document.querySelectorAll("a[href^='runs/']").length,
    });
    parent.postMessage({page: document.title,
      overflow: document.documentElement.scrollWidth - innerWidth}, "*");
  }, 200));
</script><title>"""
FRAME = """<pre></pre><script>addEventListener("message", (event) => {
  document.querySelector("pre").textContent = JSON.stringify(event.data);
});</script><iframe src="page.html" width="390" height="3000"></iframe>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_the_report_in_a_browser(done: dict[str, Any], tmp_path: Path) -> None:
    found = copy.deepcopy(done["found"])
    for row in found["rows"]:  # a learning curve, of which one run is the first point
        row["curve"] += [{**point, "rows": 4 * point["rows"]} for point in row["curve"]]
        row["curve"] += [{**point, "rows": 4 * point["rows"]} for point in row["curve"][1:]]
    page = render(found).replace("<title>", WITNESS, 1)
    own = "default-src 'none'; script-src 'unsafe-inline'"
    (tmp_path / "page.html").write_text(page.replace("default-src 'none'", own, 1))
    (tmp_path / "outer.html").write_text(FRAME)
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--no-first-run", "--virtual-time-budget=3000", "--dump-dom"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    ended = subprocess.run(
        [str(BROWSER), *options, (tmp_path / "outer.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    written = re.search(r"<pre>(.*?)</pre>", ended.stdout, re.DOTALL)
    assert written is not None
    told = json.loads(html.unescape(written[1]))
    seen = json.loads(told["page"])
    assert told["overflow"] <= 0
    assert seen["refused"] == seen["asked"] == []
    assert dict(seen["dots"]) == {"parameters": 4, "seconds": 4, "curves": 6, "forgetting": 2}
    assert seen["outside"] == 0
    assert seen["links"] > 10
