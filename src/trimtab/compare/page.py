"""The report of a comparison: one HTML file without scripts, which opens offline and prints well.

All its numbers are those of the data block that it carries (`<script type="application/json">`),
which is `compare.json` and says of each where it was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.compare import numbers
from trimtab.compare.pictures import pictures
from trimtab.compare.report import environment, scale
from trimtab.compare.verdict import named
from trimtab.evaluate.bootstrap import Interval
from trimtab.store.files import write_text

_ESCAPES: dict[str, str | int | None] = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": " ",
    "\u2029": " ",
}


def write(found: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    write_text(path, render(found))


def render(found: Mapping[str, Any]) -> str:
    """The page as text; the same data give the same page."""
    from markupsafe import Markup

    made = environment()
    made.filters |= {
        "interval": interval,
        "milliseconds": _milliseconds,
        "joules": _joules,
        "grams": _grams,
        "rate": lambda value: f"{value:.3g}",
    }
    block = json.dumps(found, allow_nan=False).translate(str.maketrans(_ESCAPES))
    rows = found["rows"]
    tests = [interval(row["test"]) for row in rows if row["test"] and row["kind"] != "base"]
    return made.get_template("compare.html.j2").render(
        found=found,
        rows=rows,
        names=[named(row, found) for row in rows],
        scale=scale([one for one in tests if one is not None]),
        pictures=pictures(found),
        share=numbers.share,
        block=Markup(block),
    )


def interval(one: Mapping[str, Any] | None) -> Interval | None:
    """Of a block's numbers; None where the metric is not defined."""
    if one is None or one["value"] is None:
        return None
    nan = float("nan")
    low, high = (nan if one[key] is None else one[key] for key in ("low", "high"))
    return Interval(one["value"], low, high, one["n"])


def _milliseconds(value: float | None) -> str:
    if value is None:
        return numbers.UNDEFINED
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _joules(value: float) -> str:
    for unit, name in ((3.6e6, "kWh"), (3.6e3, "Wh")):
        if value >= unit:
            return f"{_three(value / unit)} {name}"
    return f"{_three(value)} J"


def _grams(value: float) -> str:
    for unit, name in ((1e3, "kg"), (1.0, "g")):
        if value >= unit / 10:
            return f"{_three(value / unit)} {name}"
    return f"{_three(1000 * value)} mg"


def _three(value: float) -> str:
    """Three figures that count, without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
