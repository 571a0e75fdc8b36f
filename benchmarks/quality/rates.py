"""Which learning rate a method should have of its own: what the searches on two data sets say.

Of the rates that were tried on both, those count whose mean of the two validation metrics comes
within one point of the highest: the method's own if it is one of them, else the smallest, since
short searches favour high rates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from runs import RESULTS

from trimtab.core.method import Method
from trimtab.core.registry import methods

WORKS = ("rotten_tomatoes", "banking77")
NEAR = 0.01
Found = dict[float, float]


def searched(work: str) -> dict[str, Found]:
    """Row -> learning rate -> validation metric of its short runs."""
    rows: dict[str, Found] = {}
    for path in sorted((RESULTS / work).glob("*/search-*.json")):
        run = json.loads(path.read_text(encoding="utf8"))
        if "validation" in run:
            rows.setdefault(run["row"], {})[_written(run["lr"])] = run["validation"]
    return rows


def _written(lr: float) -> float:
    return float(f"{lr:.3g}")


def _of(method: str, rows: dict[str, Found]) -> Found:
    """At the default size if there are any, else at the largest that was tried."""
    sizes = [found for row, found in rows.items() if row.split()[0] == method]
    return rows.get(method) or next(iter(sizes), {})


def means(found: list[Found]) -> Found:
    """Rate -> mean metric of both works, of the rates that were tried on both."""
    common = set.intersection(*(set(one) for one in found))
    return {lr: sum(one[lr] for one in found) / len(found) for lr in common}


def of_both(found: list[Found], own: float) -> float | None:
    """The rate that serves both, if any was tried on both."""
    both = means(found)
    near = [lr for lr, mean in both.items() if mean >= max(both.values()) - NEAR]
    return own if own in near else min(near, default=None)


def lines() -> Iterator[str]:
    """A table: the rate that a method has, the best of each search, what its own costs."""
    yield f"| method | its own | {' | '.join(f'best on {work}' for work in WORKS)} | short by |"
    yield "|---|---|---|---|---|"
    every = [searched(work) for work in WORKS]
    for name, method in methods().items():
        found = [_of(name, rows) for rows in every]
        best = [f"{max(one, key=lambda lr: one[lr]):.3g}" if one else "–" for one in found]
        cells = (f"`{name}`", f"{method.learning_rate:.3g}", *best, _short(found, method))
        yield f"| {' | '.join(cells)} |"


def _short(found: list[Found], method: type[Method]) -> str:
    """By how much its own rate's mean lies below the best; another where that serves better."""
    both, own = means(found), _written(method.learning_rate)
    if not both:
        return "–"
    if own not in both:
        return f"not tried; {of_both(found, own):.3g} serves both"
    short = f"{max(both.values()) - both[own]:.3f}"
    return (
        short if of_both(found, own) == own else f"{short}; {of_both(found, own):.3g} serves both"
    )
