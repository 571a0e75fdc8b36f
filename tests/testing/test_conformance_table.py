"""The committed table of conformance has every cell, and the laws that are now have made it; how
the table is made, kept and gone on with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest

import trimtab
from trimtab.core.registry import _methods
from trimtab.testing import ARCHITECTURES, LAWS, conformance, matrix
from trimtab.testing.conformance import Entry, Table, attempt, tasks

COMMITTED = Path(__file__).parents[2] / "docs" / "conformance.json"
TABLE = conformance.read(COMMITTED)
AGAIN = "run `make conformance`"
PLACES = [one.name for one in ARCHITECTURES]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", cases.METHODS, ids=lambda method: method.name)
def test_every_cell_is_there_and_none_is_broken(method: Any, law: str) -> None:
    entry = TABLE.entries.get((method.name, law))
    assert entry, f"{method.name} was never held to {law}: {AGAIN}"
    assert entry.rows.keys() == {one.name for one in LAWS[law].over}, AGAIN
    assert entry.of("broken") == []
    for row in entry.rows.values():
        assert row.outcome == "holds" or row.why, f"{row.architecture}: no reason is given"
    assert len(entry.of("not run")) == 0 or law in conformance.ONCE


def test_it_is_of_the_laws_and_methods_as_they_are() -> None:
    stale = {e.law for e in TABLE.entries.values() if e.version != conformance.version(LAWS[e.law])}
    assert stale == set(), f"the laws have changed: {AGAIN}"
    assert {one.name: repr(one.readied()) for one in cases.METHODS} == TABLE.methods, AGAIN


def test_every_law_holds_somewhere_and_every_method_holds_something() -> None:
    held = {(e.method, e.law) for e in TABLE if e.of("holds")}
    assert {law for _, law in held} == set(LAWS)
    assert {method for method, _ in held} == {one.name for one in cases.METHODS}


def test_the_digest_of_a_law_follows_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["autocast"]
    before = conformance.version(law)
    assert before == conformance.version(law) != conformance.version(LAWS["copy"])

    def _close(*_: Any) -> None:
        """It lets everything pass."""

    _close.__module__ = law.check.__module__
    monkeypatch.setattr(f"{law.check.__module__}._close", _close)
    assert conformance.version(law) != before
    assert conformance.version(LAWS["copy"]) == conformance.version(LAWS["copy"])


class Elsewhere(trimtab.LoRA):
    """A method that breaks the first law; not registered, so that no other test meets it."""

    def init(self, site: Any) -> Any:
        drawn = super().init(site)
        return {**drawn, "B": type(drawn["B"])(drawn["B"].value + 1)}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(_methods, "elsewhere", Elsewhere)
    return "elsewhere"


def _probed(table: Table, *names: str, laws: tuple[str, ...] = ("start",)) -> list[Entry]:
    found = [attempt(task) for task in tasks(table, names, laws, PLACES[:2])]
    for entry in found:
        table.put(entry)
    return found


def test_a_table_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    table, file = Table(), tmp_path / "table.json"
    first = _probed(table, "lora", laws=("start", "counts"))
    assert [entry.law for entry in first] == ["start", "counts"]
    file.write_text(table.text(), encoding="utf8")
    again = conformance.read(file)
    assert (again.methods, again.entries) == (table.methods, table.entries)
    assert again.text() == table.text()
    assert _probed(again, "lora", laws=("start", "counts")) == []
    [more] = tasks(again, ["lora"], ["start"], PLACES[:3])
    assert more.places == (PLACES[2],)


def test_what_other_code_found_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    _probed(table, "lora")
    monkeypatch.setattr(conformance, "code", lambda: "other")
    [task] = tasks(table, ["lora"], ["start"], PLACES[:1])
    table.put(attempt(task))
    assert list(table.entries["lora", "start"].rows) == PLACES[:1]


def test_what_is_broken_is_said(broken: str) -> None:
    table = Table()
    _probed(table, broken)
    assert {row.architecture for _, row in table.broken} == set(PLACES[:2])
    assert "2 broken" in next(matrix.summary(table, [broken]))
    assert "✗" in matrix.page(table)
    assert len(list(conformance.changes(Table(), table))) == 1


def test_compiled_once_and_the_rest_says_where() -> None:
    [task] = tasks(Table(), ["ia3"], ["compile"], PLACES)
    entry = attempt(task)
    [held] = entry.of("holds")
    assert {row.why for row in entry.of("not run")} == {f"tried once: on {held.architecture}"}
    assert held.architecture == PLACES[task.turn % len(PLACES)]
