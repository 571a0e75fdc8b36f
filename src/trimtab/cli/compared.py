"""A comparison as a table and a paragraph in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.cli.table import output, say, show
from trimtab.compare import numbers
from trimtab.compare.verdict import named
from trimtab.core.counts import size

_SIGNS = {"better": "better", "worse": "worse", "no difference shown": "no winner"}


def print_comparison(found: Mapping[str, Any], out: Path) -> None:
    """What was found, what failed, and where the report lies."""
    console = output()
    if found["rows"]:
        less = "" if found["higher_is_better"] else ", less is better"
        full = named(found["rows"][found["reference"]], found) if _known(found) else "full"
        head = ("", f"{found['metric']}, 95 %{less}", f"against {full}", "trained", "kept",
                "seconds", "memory", "ms each", "forgot")  # fmt: skip
        rows = [_row(i, row, found) for i, row in enumerate(found["rows"])]
        show(console, head, rows, right=head[1:], drop=("memory", "forgot", "seconds"))
        console.print()
        say(console, found["verdict"]["text"])
    for model, why in found.get("few_shot_not_applicable", {}).items():
        say(console, f"few-shot with {model} is not applicable: {why}")
    for score in found.get("scores", ()):
        told = f"{score['logme']:.3f}" if score["logme"] is not None else f"none: {score['why']}"
        say(console, f"transferability of {score['model']} (LogME): {told}")
    for place, error in found["failed"].items():
        say(console, f"failed: {place}: {error}")
    for name in ("report.html", "compare.json"):
        console.print(f"{name.partition('.')[0]}: {out / name}", markup=False, soft_wrap=True)


def _known(found: Mapping[str, Any]) -> bool:
    return found["reference"] is not None


def _row(i: int, row: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = " ←" if found["verdict"]["choice"] == i and row["kind"] != "base" else ""
    took = (row["milliseconds"] or {}).get("merged") or (row["milliseconds"] or {}).get("unmerged")
    forgot = (row["forgetting"] or {}).get("adapted")
    return (
        f"{named(row, found)}{chosen}",
        _interval(row["test"]),
        "–" if row["against"] is None else _against(row["against"]),
        "–" if not row["trained"] else numbers.count(row["trained"]),
        "–" if not row["bytes"] else size(row["bytes"]),
        "–" if not row["seconds"] else f"{row['seconds']:.1f}",
        "–" if row["peak_memory"] is None else size(row["peak_memory"]),
        "–" if took is None else f"{took:.1f}",
        "–" if forgot is None else numbers.metric(forgot),
    )


def _interval(one: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if one is None or one["value"] is None:
        return "–"
    parts = [numbers.metric(one[key], signed=signed) if one[key] is not None else "–"
             for key in ("value", "low", "high")]  # fmt: skip
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def _against(one: Mapping[str, Any]) -> str:
    return f"{_interval(one, signed=True)} {_SIGNS[one['shows']]}"
