"""How a run's result is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROWS = {"base": "base, as loaded", "head": "head only"}


def print_result(metrics: dict[str, Any], out: Path) -> None:
    """The table of base, head only and adapted model; what was noted; where the report lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in (metrics["metric"], "95 % interval", "trained", "seconds", "on disk"):
        table.add_column(name, justify="right")
    for row, name in _ROWS.items():
        if metrics["baselines"].get(row):
            table.add_row(name, *_interval(metrics["baselines"][row]), "", "", "")
    share = metrics["trainable"] / metrics["total"]
    table.add_row(
        metrics["method"],
        *_interval(metrics["test"]),
        f"{metrics['trainable']:,} ({share:.2%})",
        f"{metrics['train_seconds']:.1f}",
        _size(metrics["adapter_bytes"]),
        style="bold",
    )
    console = Console(highlight=False)
    console.print(table)
    for row, gain in metrics["gain_over"].items():
        bounds = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
        verdict = "" if gain["low"] > 0 or gain["high"] < 0 else ": no difference shown"
        console.print(f"against {_ROWS[row]}: {gain['value']:+.3f} {bounds}, paired{verdict}", markup=False)
    for note in metrics["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {out / 'report.html'}   adapter: {out / 'adapter'}", markup=False)


def _interval(value: dict[str, Any]) -> tuple[str, str]:
    return f"{value['value']:.3f}", f"[{value['low']:.3f}, {value['high']:.3f}]"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
