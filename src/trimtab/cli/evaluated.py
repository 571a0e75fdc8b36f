"""How `trimtab eval` prints what it found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trimtab.cli.table import output, say, show

if TYPE_CHECKING:
    from trimtab.evaluate.tables import Cell

_LINES = (
    ("adapted", "value"),
    ("base", "base"),
    ("gain over base, paired", "gain_over_base"),
    ("head only", "head"),
    ("gain over head only, paired", "gain_over_head"),
)


def print_evaluation(result: dict[str, Any], out: str | None) -> None:
    """The metric, the tables that were asked for, and notes."""
    from trimtab.evaluate.tables import tables

    for name, key in _LINES:
        if key in result:
            print(f"{name}: {result['metric']} {_told(result[key])}")
    console = output()
    for one in tables(result):
        console.print()
        say(console, one.title)
        rows = [tuple(map(_cell, row)) for row in one.rows]
        show(console, one.head, rows, right=one.head[1:])
        if one.text:
            say(console, one.text)
    for note in result["notes"]:
        print(f"note: {note}")
    if out is not None:
        print(f"page: {out}/eval.html")


def _told(found: dict[str, Any]) -> str:
    value, low, high = ("–" if found[k] is None else f"{found[k]:.4f}" for k in _BOUNDS)
    return f"{value} [{low}, {high}] on {found['n']} examples"


_BOUNDS = ("value", "low", "high")


def _cell(one: Cell) -> str:
    if isinstance(one, str):
        return one
    found, sign = getattr(one, "found", one), "+" if hasattr(one, "found") else ""
    parts = (found.value, found.low, found.high)
    value, low, high = (f"{x:{sign}.3f}" if math.isfinite(x) else "–" for x in parts)
    return f"{value} [{low}, {high}]"
