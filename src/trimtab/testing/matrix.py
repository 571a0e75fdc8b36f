"""The conformance table for people: lines in a terminal, and a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trimtab.testing.architectures import ARCHITECTURES
from trimtab.testing.conformance import ONCE, Entry, Table
from trimtab.testing.laws import LAWS
from trimtab.testing.report import Row

MARKS = {"holds": "✓", "not applicable": "–", "broken": "✗"}


def summary(table: Table, chosen: Sequence[str]) -> Iterator[str]:
    """For each method: which laws hold, and why not where one does not."""
    for method in chosen:
        found: dict[str, list[str]] = {}
        for entry in table.of(method):
            for line in _told(entry):
                found.setdefault(line, []).append(entry.law)
        broken = sum(len(entry.of("broken")) for entry in table.of(method))
        yield f"{method}{f': {broken} broken' if broken else ''}"
        yield from (f"  {line}  [{', '.join(laws)}]" for line, laws in found.items())


def _told(entry: Entry) -> Iterator[str]:
    held, tried = len(entry.of("holds")), _tried(entry)
    if held:
        yield f"holds on {held} of {tried}"
    for outcome in ("not applicable", "not run", "broken"):
        for why, rows in _grouped(entry.of(outcome)).items():
            yield f"{outcome}{_on(rows, tried)}: {why}"


def _tried(entry: Entry) -> int:
    return len(entry.rows) - len(entry.of("not run"))


def _on(rows: Sequence[Row], tried: int) -> str:
    names = [one.architecture for one in rows]
    return "" if len(names) >= tried or rows[0].outcome == "not run" else f" on {', '.join(names)}"


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for one in rows:
        found.setdefault(one.why, []).append(one)
    return found


def page(table: Table) -> str:
    """The table as Markdown: a mark a cell, and the reasons beneath, numbered."""
    notes: dict[str, list[str]] = {}
    text = [HEAD.format(count=len(ARCHITECTURES), once=", ".join(sorted(ONCE)))]
    for title, numbers in GROUPS.items():
        laws = [law for law in LAWS.values() if law.number in numbers]
        text += ["", f"## {title}", "", f"| method | {' | '.join(law.name for law in laws)} |"]
        text.append(f"|---|{'---|' * len(laws)}")
        for method in sorted(table.methods):
            cells = [_cell(table.entries.get((method, law.name)), notes) for law in laws]
            text.append(f"| `{method}` | {' | '.join(cells)} |")
        text += ["", *(f"- **{law.name}** (law {law.number}): {law.says}" for law in laws)]
    text += ["", "## Notes", ""]
    for number, (note, places) in enumerate(notes.items(), 1):
        everywhere = any({one.name for one in law.over} == set(places) for law in LAWS.values())
        where = "" if everywhere else f" ({', '.join(places)})"
        text.append(f"{number}. {_escaped(note)}{where}")
    return "\n".join(text) + "\n"


GROUPS = {
    "Start, learning, merging": (1, 2, 3),
    "Files": (4, 5),
    "Copies, compilation, precision, checkpointing": (6,),
    "Several adapters, layers, quantised bases, counts, switching": (7, 8, 9, 10, 11),
}

HEAD = """# Conformance

Every method held to every law of `trimtab.testing` on tiny models of {count} architectures (the
law of layers: on models of one layer each; that of quantised bases: on BERT in each format). Found
by `make conformance`, never typed by hand;
[conformance.json](conformance.json) has every cell.

✓ holds wherever it was tried; *n of m* holds where it applies; – has nothing to say of the method;
✗ is broken. The numbers lead to the reasons. Tried once a method, on the architectures in turn:
{once}."""


def _cell(entry: Entry | None, notes: dict[str, list[str]]) -> str:
    if entry is None:
        return "?"
    held, tried = len(entry.of("holds")), _tried(entry)
    marks = set()
    for row in [*entry.of("not applicable"), *entry.of("broken")]:
        note = _note(entry.method, row)
        places = notes.setdefault(note, [])
        if row.architecture not in places:
            places.append(row.architecture)
        marks.add(list(notes).index(note) + 1)
    sign = "✗" if entry.of("broken") else "–" if not held else f"{held} of {tried}"
    sign = "✓" if held == tried else sign
    return f"{sign} <sup>{' '.join(map(str, sorted(marks)))}</sup>" if marks else sign


_OTHERWISE = {
    r"'[^']*'( and '[^']*')+ are tied": "weights are tied",
    r"'[\w.]*\.[\w.]*'": "a site",
    r"\b\w+(For|Model)\w*\b": "the model",
    r", and this is \w+$": " alone",
}
"""What differs between models in a reason -> how its note says it."""


def _note(method: str, row: Row) -> str:
    """The reason as it is for any method and any site: a note for many cells."""
    if row.outcome == "broken":
        return "broken: conformance.json says how"
    own = re.escape(method)
    why = re.sub(rf"^{own}(?=[ :])|(?<=holds no ){own}(?= there)", "it", row.why)
    for pattern, words in _OTHERWISE.items():
        why = re.sub(pattern, words, why)
    return why


def _escaped(note: str) -> str:
    return note.replace("|", "\\|").replace("<", "&lt;")
