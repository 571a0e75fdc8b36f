"""The page on loops does what it says: every block of code on it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import datasets
import kinds
import pytest

import trimtab

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "loops.md").read_text(encoding="utf8")
SECTIONS = {
    section.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for section in PAGE.split("\n## ")[1:]
}
SPREAD = [title for title in SECTIONS if "processes" in title]
ALONE = [title for title in SECTIONS if title not in SPREAD]

pytestmark = pytest.mark.filterwarnings("ignore")  # the page leaves the trainers' defaults alone


def given() -> dict[str, Any]:
    """What the page takes for granted."""
    return {
        "model": kinds.stories(),
        "tokenizer": kinds.tokenizer(),
        "rows": kinds.rows(),
        "tasks": datasets.Dataset.from_list(kinds.tasks()),
        "preferences": datasets.Dataset.from_list(kinds.preferences()),
    }


def assert_trained(folder: Path) -> None:
    model = kinds.stories()
    trimtab.load(model, folder)
    found = cases.logits(model, kinds.batch())
    assert found.isfinite().all()
    cases.assert_differs(found, cases.logits(kinds.stories(), kinds.batch()))


def test_the_page_has_code_in_every_section() -> None:
    assert len(ALONE) >= 6
    assert len(SPREAD) == 2
    assert all("trimtab.save" in code for code in SECTIONS.values())


@pytest.mark.parametrize("title", ALONE)
def test_a_section_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    exec(compile(SECTIONS[title], f"docs/loops.md, {title}", "exec"), names)
    assert_trained(tmp_path / "adapter")


@pytest.mark.parametrize("title", SPREAD)
def test_a_section_runs_in_two_processes(title: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    before = "from test_loops_page import given\nglobals().update(given())\n"
    script.write_text(before + SECTIONS[title], encoding="utf8")
    paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "loops")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "adapter")
