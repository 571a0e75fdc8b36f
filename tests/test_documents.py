"""Every page's code runs, from its first block to its last, as one program."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from trimtab.core import method, registry
from trimtab.core.adapter import record
from trimtab.core.options import options

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The page's blocks of Python, each with the number of the line before it."""
    text = page.read_text(encoding="utf8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found[1]


PAGES = sorted(page.stem for page in DOCS.glob("*.md") if any(True for _ in blocks(page)))
ALONE = [page for page in PAGES if page != "loops"]  # whose sections have tests of their own


@pytest.fixture(autouse=True)
def _own_methods_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


def run(page: Path) -> dict[str, Any]:
    """All blocks of a page, in one session that starts with no names at all."""
    names: dict[str, Any] = {}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page.relative_to(ROOT)), "exec"), names)
    return names


@pytest.mark.parametrize("page", ALONE)
def test_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(DOCS / f"{page}.md")


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first program; the other one is a sketch of a method's file."""
    monkeypatch.chdir(tmp_path)
    first, sketch = blocks(ROOT / "README.md")
    assert "..." in sketch[1]
    names: dict[str, Any] = {}
    exec(compile("\n" * first[0] + first[1], "README.md", "exec"), names)
    assert list(record(names["model"]).adapters) == ["reviews"]


@pytest.mark.parametrize("method", registry.methods())
def test_a_methods_page_runs(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(DOCS / "methods" / f"{method}.md")
    outputs = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for model in (names["model"].eval(), names["restored"].eval()):
            if "tasks" in names:
                stack.enter_context(trimtab.given(model, task_ids=names["tasks"]))
            outputs.append(model(**names["batch"]).logits)
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("method", registry.methods())
def test_every_option_has_a_meaning(method: str) -> None:
    stated = options(registry.lookup(method))
    assert [one.name for one in stated if not one.meaning] == []
    page = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf8")
    assert [one.name for one in stated if f"| `{one.name}` |" not in page] == []


def test_an_option_is_described_where_it_is_stated_last() -> None:
    width, reduction = (
        next(one for one in options(trimtab.Pfeiffer) if one.name == name)
        for name in ("width", "reduction")
    )
    assert (reduction.default, reduction.type) == (16, "float | None")  # its own
    houlsby = {one.name: one.meaning for one in options(trimtab.Houlsby)}
    assert houlsby["reduction"] == reduction.meaning != ""  # its kind's
    assert houlsby["width"] == width.meaning != reduction.meaning
    names = [one.name for one in options(trimtab.VeRA)]
    assert names == ["rank", "d_initial", "seed", "dropout"]  # what it shares comes last


def test_every_fact_of_a_class_is_explained() -> None:
    kinds = [one for one in vars(method).values() if isinstance(one, type)]
    facts = {
        name
        for kind in kinds
        if kind.__module__ == method.__name__ and issubclass(kind, method.Method)
        for name, type_ in kind.__annotations__.items()
        if "ClassVar" in type_
    }
    page = (DOCS / "own-method.md").read_text(encoding="utf8")
    assert len(facts) > 10
    assert {fact for fact in facts if f"| `{fact}` |" not in page} == set()


def test_every_page_is_linked() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    assert [page for page in PAGES if f"docs/{page}.md" not in readme] == []
    assert {"combining", "files", "loops", "own-method", "sites"} < set(PAGES)


WRITTEN = [
    *ROOT.glob("*.md"),
    *(
        page
        for folder in ("docs", "examples", "benchmarks")
        for page in (ROOT / folder).rglob("*.md")
    ),
]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, heading = target.partition("#")
        leads_to = page.parent / path if path else page
        assert leads_to.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(leads_to), f"{page.name} links to {target}"


def links(page: Path) -> list[str]:
    """The relative links of a page, outside its code."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf8"), flags=re.DOTALL | re.MULTILINE
    )
    found = re.findall(r"\]\(<?([^()>\s]+)>?\)", re.sub(r"`[^`\n]*`(?!\])", "", text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
