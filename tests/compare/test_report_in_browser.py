"""The page in a real browser: the charts are drawn, and nothing is asked of any network."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trimtab.compare.report import Report, render

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--no-first-run", "--virtual-time-budget=3000", "--dump-dom"),
]
# Inside the page: tells its frame what was drawn, and what was asked for, granted or refused.
WITNESS = """<script>
  const refused = [], alerts = [];
  window.alert = (text) => alerts.push(text);
  addEventListener("securitypolicyviolation", (event) => refused.push(event.blockedURI));
  addEventListener("load", () => setTimeout(() => parent.postMessage({
    name: NAME, refused, alerts,
    asked: performance.getEntriesByType("resource").map((entry) => entry.name),
    drawn: [...document.querySelectorAll(".chart")]
      .filter((chart) => chart.querySelector("svg .trace path")).map((chart) => chart.id),
    words: document.getElementById("inside").textContent,
    images: document.images.length,
    overflow: document.documentElement.scrollWidth - innerWidth,
  }, "*"), 300));
</script><title>"""
FRAME = '<iframe src="{name}.html" width="390" height="2000"></iframe>'
OUTER = """<pre></pre><script>
  const seen = [];
  addEventListener("message", (event) => {
    seen.push(event.data);
    document.querySelector("pre").textContent = JSON.stringify(seen);
  });
</script>"""


def look(reports: dict[str, Report], folder: Path) -> dict[str, dict]:
    """Open the pages, each in a frame as wide as a phone; what each page saw of itself."""
    for name, report in reports.items():
        witness = WITNESS.replace("NAME", json.dumps(name))
        page = render(report).replace("<title>", witness, 1)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    outer = folder / "outer.html"
    outer.write_text(OUTER + "".join(FRAME.format(name=name) for name in reports))
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", outer.as_uri()]
    home = os.environ | {"HOME": str(folder)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home)
    assert ended.returncode == 0, ended.stderr
    written = html.unescape(re.search(r"<pre>(.*?)</pre>", ended.stdout, re.DOTALL)[1])
    return {seen["name"]: seen for seen in json.loads(written)}


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_charts_are_drawn_and_nothing_is_requested(report, hostile, tmp_path):
    seen = look({"calm": report, "hostile": hostile}, tmp_path)
    assert set(seen) == {"calm", "hostile"}
    for page in seen.values():
        assert page["drawn"] == ["losses", "quality", "inside", "outside"]
        assert page["asked"] == page["refused"] == page["alerts"] == []
        assert page["images"] == 0
        assert page["overflow"] <= 0
    assert "attention.self.query  36,864" in seen["calm"]["words"]
    assert "</script><script>" in seen["hostile"]["words"]
