"""The page on loops does what it says: every block of code on it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

import trimtab

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "loops.md").read_text(encoding="utf8")
BEGIN, *REST = (
    (part.partition("\n")[0], "\n".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL)))
    for part in PAGE.split("\n## ")
)
SETUP, SECTIONS = BEGIN[1], dict(REST)
SPREAD = [title for title in SECTIONS if "processes" in title]
ALONE = [title for title in SECTIONS if title not in SPREAD]

pytestmark = pytest.mark.filterwarnings("ignore")  # the page leaves the trainers' defaults alone


def begun() -> dict[str, Any]:
    """The names that the page's first block defines."""
    names: dict[str, Any] = {}
    exec(compile(SETUP, "docs/loops.md", "exec"), names)
    return names


def assert_trained(folder: Path, names: dict[str, Any]) -> None:
    batch = {key: value[None] for key, value in names["rows"][0].items()}
    model, base = names["fresh"](), names["fresh"]()
    trimtab.load(model, folder)
    found = cases.logits(model, batch)
    assert found.isfinite().all()
    assert not torch.equal(found, cases.logits(base, batch))  # a few steps of a tiny model: a bit


def test_the_page_has_code_in_every_section() -> None:
    assert len(ALONE) >= 6
    assert len(SPREAD) == 2
    assert all("trimtab.save" in code for code in SECTIONS.values())


@pytest.mark.parametrize("title", ALONE)
def test_a_section_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = begun()
    exec(compile(SECTIONS[title], f"docs/loops.md, {title}", "exec"), names)
    assert_trained(tmp_path / "adapter", begun())


@pytest.mark.parametrize("title", SPREAD)
def test_a_section_runs_in_two_processes(title: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SETUP + SECTIONS[title], encoding="utf8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "adapter", begun())
