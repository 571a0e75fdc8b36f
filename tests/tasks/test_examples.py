"""Every task's page has an example of at most 15 lines, which runs as it stands."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tasks").glob("*.md"))


def example(page: Path) -> str:
    """The page's last block of Python."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf8"), re.DOTALL | re.MULTILINE)[
        -1
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_example_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tiny models and data at the places that it names, which `examples/` makes."""
    code = example(page)
    assert len(code.splitlines()) <= 15
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    importlib.import_module(f"examples.{page.stem.replace('-', '_')}").prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    try:
        exec(compile(code, page.name, "exec"), {})
    finally:
        for name in set(sys.modules) - before:  # modules of the page's own
            if (sys.modules[name].__dict__.get("__file__") or "").startswith(str(tmp_path)):
                del sys.modules[name]
