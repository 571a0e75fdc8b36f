"""How tables and lines are printed: at any width of the terminal every number stays whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trimtab.compare.report import BASELINES
from trimtab.core.counts import percent, size

_NARROWEST = 20  # of a column whose words may go to the next line
_NOTHING = ("", "–")


def output() -> Console:
    return Console(highlight=False)


def say(console: Console, text: str) -> None:
    """A line; on a terminal wrapped between words."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def show(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[str] = (),
    right: Collection[str] = (),
    drop: Sequence[str] = (),
) -> list[str]:
    """A table in the width that there is; returns the columns that found no room.

    Those in `words` may be wrapped between words, those in `right` stand to the right. While it
    is too wide, columns go in the order of `drop`; then every row becomes a block of lines.
    """
    gone: list[str] = []
    for column in ("", *drop):
        gone += [column] if column else []
        least, table = (_table(head, rows, words, right, gone, cap) for cap in (_NARROWEST, None))
        room = console.options.update(width=10_000)
        if Measurement.get(console, room, least).maximum <= console.width:
            console.print(table)
            return gone
    for name, *cells in rows:
        console.print(name, style="bold", markup=False)
        for column, cell in zip(head[1:], cells, strict=True):
            if cell not in _NOTHING:
                say(console, f"  {column}: {cell}")
    return []


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[str],
    right: Collection[str],
    gone: Collection[str],
    cap: int | None,
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
    for name in head:
        if name not in gone:
            table.add_column(
                Text(name),
                justify="right" if name in right else "left",
                no_wrap=name not in words,
                max_width=cap if name in words else None,
            )
    for row in rows:
        named = zip(head, row, strict=True)
        table.add_row(*(Text(cell) for name, cell in named if name not in gone))
    return table


def print_result(metrics: dict[str, Any], out: Path, console: Console | None = None) -> None:
    """The table of base, head only and adapted model; what was noted; where the report lies."""
    console = console or output()
    less = "" if metrics.get("higher_is_better", True) else ", less is better"
    head = ("", f"{metrics['metric']}, 95 %{less}", "trained", "seconds", "on disk")
    show(console, head, _rows(metrics), right=head[1:])
    for row, gain in metrics["gain_over"].items():
        if gain["value"] is None:
            say(console, f"against {BASELINES[row]}: not defined on these examples")
            continue
        shown = gain["low"] is not None and (gain["low"] > 0 or gain["high"] < 0)
        verdict = "" if shown else ": no difference shown"
        say(console, f"against {BASELINES[row]}: {_interval(gain, '+')}, paired{verdict}")
    for name, by_row in metrics.get("metrics", {}).items():
        found = by_row["adapted"]
        say(console, f"{name}: {'not defined' if found is None else f'{found:.3f}'}")
    if metrics.get("probe_seconds"):
        spent = f"{metrics['probe_seconds']:.1f} of its seconds"
        say(
            console, f"{metrics['method']}: {spent} went into the head alone, where its head begins"
        )
    if metrics["best_step"] != metrics.get("planned_steps", metrics["best_step"]):
        say(console, _kept(metrics))
    for note in metrics["notes"]:
        say(console, f"note: {note}")
    for name, path in (("report", out / "report.html"), ("adapter", out / "adapter")):
        console.print(f"{name}: {path}", markup=False, soft_wrap=True)


def _kept(metrics: dict[str, Any]) -> str:
    """Which step's adapter it is, where it is not the last's that was meant."""
    done, planned = metrics["steps"], metrics["planned_steps"]
    said = (
        f"the adapter is that of step {metrics['best_step']} of {planned}, the best on validation"
    )
    return f"{said}; training stopped early, at step {done}" if done < planned else said


def _rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for row, name in BASELINES.items():
        if metrics["baselines"].get(row):
            cost = metrics["baseline_costs"][row]
            cells = _cost(cost["trainable"], metrics["total"], cost["seconds"], cost["bytes"])
            rows.append((name, _interval(metrics["baselines"][row]), *cells))
    cells = _cost(
        metrics["trainable"],
        metrics["total"],
        metrics["train_seconds"] + metrics.get("probe_seconds", 0.0),
        metrics["adapter_bytes"],
    )
    return [*rows, (metrics["method"], _interval(metrics["test"]), *cells)]


def _interval(value: dict[str, Any], sign: str = "") -> str:
    """In JSON what is not defined is null."""
    parts = [value[key] for key in ("value", "low", "high")]
    middle, low, high = ("–" if one is None else f"{one:{sign}.3f}" for one in parts)
    return f"{middle} [{low}, {high}]"


def _cost(trainable: int, total: int, seconds: float, held: int) -> tuple[str, str, str]:
    if not trainable:
        return "–", "–", "–"
    return f"{trainable:,} ({percent(trainable / total)})", f"{seconds:.1f}", size(held)
