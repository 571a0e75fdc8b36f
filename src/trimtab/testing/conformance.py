"""The conformance table: every method held to every law on every architecture, and kept in a file.

A file that is there is gone on with: what was found by the same code is not tried again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import multiprocessing
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from trimtab.core.errors import InputError, nearest
from trimtab.core.method import Method
from trimtab.core.registry import lookup, methods
from trimtab.testing import architectures as models
from trimtab.testing import layers, trial
from trimtab.testing.architectures import ARCHITECTURES, Architecture
from trimtab.testing.check import own_random_numbers, row
from trimtab.testing.laws import LAWS, Law
from trimtab.testing.report import Outcome, Row

ONCE = frozenset({"compile"})
"""Laws that are too slow to be tried on every architecture: one each method, in turn."""

PACKAGE = Path(__file__).parent.parent
TRIED = (
    "*.py",
    "core/*.py",
    "methods/*.py",
    "kernels/*.py",
    "store/**/*.py",
    "quant/*.py",
    "testing/laws/*.py",
)
SPARED = {PACKAGE / "__init__.py", PACKAGE / "__main__.py", PACKAGE / "capabilities.py"}
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "torchao")


@dataclass(frozen=True)
class Entry:
    """What was found of one method and one law, by place; which law and which code found it."""

    method: str
    law: str
    version: str
    code: str
    rows: dict[str, Row]

    def of(self, outcome: Outcome) -> list[Row]:
        return [row for row in self.rows.values() if row.outcome == outcome]


@dataclass
class Table:
    """The entries, by method and law, and each method as it was tried."""

    methods: dict[str, str] = field(default_factory=dict)
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def put(self, entry: Entry) -> None:
        """The new rows; of the old entry what the same code found at other places stays."""
        old = self.entries.get((entry.method, entry.law))
        kept = old.rows if old and old.version == entry.version and old.code == entry.code else {}
        rows = {**kept, **entry.rows}
        if entry.law in ONCE:  # "not run" says less than what was found
            rows |= {p: r for p, r in kept.items() if rows[p].outcome == "not run"}
        whole = Entry(entry.method, entry.law, entry.version, entry.code, rows)
        self.entries[entry.method, entry.law] = whole
        self.methods[entry.method] = repr(lookup(entry.method)().readied())

    @property
    def broken(self) -> list[tuple[str, Row]]:
        """(method, row) of what does not hold."""
        return [(entry.method, row) for entry in self for row in entry.of("broken")]

    def __iter__(self) -> Iterator[Entry]:
        order = list(LAWS)
        known = [entry for entry in self.entries.values() if entry.law in LAWS]
        return iter(sorted(known, key=lambda one: (one.method, order.index(one.law))))

    def text(self) -> str:
        """As JSON, one line an entry."""
        blocks = []
        for name in sorted(self.methods):
            rows = [f"  {json.dumps(e.law)}: {json.dumps(_plain(e))}" for e in self.of(name)]
            tried = json.dumps(self.methods[name])
            block = f'{json.dumps(name)}: {{"tried": {tried}, "laws": {{\n'
            blocks.append(block + ",\n".join(rows) + "\n}}")
        return "{" + ",\n".join(blocks) + "}\n"

    def of(self, method: str) -> list[Entry]:
        """The entries of one method, in the order of the laws."""
        return [entry for entry in self if entry.method == method]


def read(path: Path) -> Table:
    """A table that `write` wrote; an empty one where there is no file."""
    table = Table()
    if not path.exists():
        return table
    try:
        for method, held in json.loads(path.read_text(encoding="utf8")).items():
            table.methods[method] = held["tried"]
            for law, plain in held["laws"].items():
                if law not in LAWS:
                    continue
                rows = {
                    place: Row(law, place, cast(Outcome, outcome), why)
                    for outcome, reasons in plain["found"].items()
                    for why, places in reasons.items()
                    for place in _places(law, places)
                }
                table.entries[method, law] = Entry(method, law, plain["law"], plain["code"], rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no table that `trimtab methods --probe` wrote: {error!r}; "
            "give another --out, or remove it"
        ) from None
    return table


def _plain(entry: Entry) -> dict[str, Any]:
    """Outcome -> reason -> places; for all the places of a law their number."""
    over = [one.name for one in LAWS[entry.law].over]
    found: dict[str, dict[str, Any]] = {}
    for place in over:
        if one := entry.rows.get(place):
            found.setdefault(one.outcome, {}).setdefault(one.why, []).append(place)
    for reasons in found.values():
        reasons |= {why: len(over) for why, places in reasons.items() if places == over}
    return {"law": entry.version, "code": entry.code, "found": found}


def _places(law: str, places: list[str] | int) -> list[str]:
    over = [one.name for one in LAWS[law].over]
    return places if isinstance(places, list) else over if places == len(over) else []


def named(known: dict[str, Any], wanted: Iterable[str], what: str) -> list[str]:
    """These names in their order, all if none is given; an unknown one is an error."""
    chosen = list(wanted)
    for name in chosen:
        if name not in known:
            raise InputError(f"no {what} is called {name!r}; {nearest(name, known)}")
    return [name for name in known if name in chosen or not chosen]


def version(law: Law) -> str:
    """A digest of what the law says: its functions, and what it is tried with."""
    sources = [inspect.getsource(models), inspect.getsource(trial), *_sources(law.check)]
    if law.over is not ARCHITECTURES:
        sources.append(inspect.getsource(layers))
    return _digest(sources)


def _sources(check: Callable[..., Any]) -> list[str]:
    """The law's source and those of the functions beside it that it calls."""
    module = inspect.getmodule(check)
    found: dict[str, Callable[..., Any]] = {}
    todo = [check]
    while todo:
        one = todo.pop()
        beside = inspect.isfunction(one) and one.__module__ == check.__module__
        if beside and one.__name__ not in found:
            found[one.__name__] = one
            todo += [getattr(module, name, None) for name in one.__code__.co_names]
    return [inspect.getsource(found[name]) for name in sorted(found)]


@functools.cache
def code() -> str:
    """A digest of all that a law tries, and of the libraries beneath it."""
    paths = {path for pattern in TRIED for path in PACKAGE.glob(pattern)} - SPARED
    sources = [path.read_text(encoding="utf8") for path in sorted(paths)]
    return _digest([*sources, *(f"{name} {_installed(name)}" for name in VERSIONS)])


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Task:
    """One method and one law, at these places; the place of the method in the list of all."""

    method: str
    law: str
    places: tuple[str, ...]
    turn: int


def tasks(
    table: Table, chosen: Sequence[str], laws: Sequence[str], places: Sequence[str]
) -> list[Task]:
    """What is to be tried: all that the table has not from the code as it is now."""
    turns = list(methods())
    todo = []
    for method in chosen:
        for law in laws:
            over = LAWS[law].over
            wanted = tuple(places) if over is ARCHITECTURES else tuple(one.name for one in over)
            old = table.entries.get((method, law))
            same = old and old.code == code() and old.version == version(LAWS[law])
            missing = tuple(p for p in wanted if not (same and old and p in old.rows))
            if missing:
                todo.append(Task(method, law, missing, turns.index(method)))
    return todo


def probe(todo: Sequence[Task], jobs: int = 1) -> Iterator[Entry]:
    """The entries, each as soon as it is found, with `jobs` processes of one thread each."""
    if jobs == 1:
        yield from map(attempt, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(attempt, todo)


def attempt(task: Task) -> Entry:
    """One method held to one law; each time with the same random numbers."""
    method, law = lookup(task.method)(), LAWS[task.law]
    places = [one for one in law.over if one.name in task.places]
    with warnings.catch_warnings(), own_random_numbers():
        warnings.simplefilter("ignore")  # the tests make errors of them; here they hide the table
        if task.law in ONCE:
            start = task.turn % len(places)
            rows = _once(method, law, [*places[start:], *places[:start]])
        else:
            rows = [row(method, law, place) for place in places]
    found = {one.architecture: _short(one) for one in rows}
    return Entry(task.method, task.law, version(law), code(), found)


def _once(method: Method, law: Law, places: Sequence[Architecture]) -> list[Row]:
    """The law at the first place that can tell; the others say where that was."""
    rows: list[Row] = []
    for place in places:
        found = row(method, law, place)
        rows.append(found)
        if found.outcome != "not applicable":
            why = f"tried once: on {place.name}"
            rest = places[len(rows) :]
            return rows + [Row(law.name, other.name, "not run", why) for other in rest]
    return rows


_SITE = re.compile(r" at '[^']*'( \([^)]*\), which '[^']*' names)?|^'[^']*' (?=\(\w+\) cannot)")


def _short(found: Row) -> Row:
    """In a line; a reason without the site, so that those of several models are one."""
    why = " ".join(found.why.split())
    if found.outcome == "not applicable":
        why = _SITE.sub("", why)
    return Row(found.law, found.architecture, found.outcome, why[:300] + "…" * (len(why) > 300))


def changes(before: Table, after: Table) -> Iterator[str]:
    """What is found now and was not: a line each method, law and pair of outcomes."""
    for entry in after:
        old = before.entries.get((entry.method, entry.law))
        moved: dict[str, list[str]] = {}
        for place, now in entry.rows.items():
            was = old.rows.get(place) if old else None
            if was is None or was.outcome != now.outcome:
                step = f"{was.outcome if was else 'not tried'} -> {now.outcome}"
                moved.setdefault(step, []).append(place)
        for step, where in moved.items():
            yield f"{entry.method}, {entry.law}: {step} on {', '.join(where)}"
