"""Every page's code runs, from its first block to its last, as one program."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from words import tokenizer

import trimtab
from trimtab.core import registry

ROOT = Path(__file__).parent.parent
BERT, GPT2, T5 = (cases.by_name(name) for name in ("bert", "gpt2", "t5"))
PAGES = {
    "combining": BERT,
    "compositions": BERT,
    "own-method": BERT,
    "files": BERT,
    "quantised": BERT,
    "recipes": T5,
    "sites": GPT2,
    "starting": BERT,
}


@pytest.fixture(autouse=True)
def _own_methods_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "model": PAGES[page].model().train(),
        "fresh": PAGES[page].model,
        "batch": _of_two(PAGES[page].batch()),
        "tokenizer": tokenizer(PAGES[page].name),
    }
    for line, code in blocks(ROOT / "docs" / f"{page}.md"):
        exec(compile("\n" * line + code, f"docs/{page}.md", "exec"), names)


@pytest.mark.parametrize("method", registry.methods())
def test_a_methods_page_runs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batch = _of_two(BERT.batch())
    names: dict[str, Any] = {"model": BERT.model().train(), "fresh": BERT.model, "batch": batch}
    page = ROOT / "docs" / "methods" / f"{method}.md"
    (code,) = blocks(page)
    exec(compile("\n" * code[0] + code[1], f"docs/methods/{method}.md", "exec"), names)
    outputs = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for model in (names["model"].eval(), names["restored"].eval()):
            if "tasks" in names:
                stack.enter_context(trimtab.given(model, task_ids=names["tasks"]))
            outputs.append(model(**batch).logits)
    torch.testing.assert_close(*outputs)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The page's blocks of Python, each with the number of the line before it."""
    text = page.read_text(encoding="utf8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found[1]


def _of_two(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:2] for key, value in batch.items()}


def test_every_page_is_tried_and_linked() -> None:
    # tests of their own, or without code
    elsewhere = {"loops", "methods", "conformance", "glossary", "LOG", "quality"}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == set(PAGES) | elsewhere
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    assert [page for page in PAGES if f"docs/{page}.md" not in readme] == []
    assert all(any(True for _ in blocks(ROOT / "docs" / f"{page}.md")) for page in PAGES)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
