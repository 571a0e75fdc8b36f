"""How a run's result is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.compare.report import BASELINES


def print_result(metrics: dict[str, Any], out: Path) -> None:
    """The table of base, head only and adapted model; what was noted; where the report lies."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (f"{metrics['metric']}, 95 %", "trained", "seconds", "on disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, name in BASELINES.items():
        if metrics["baselines"].get(row):
            cost = metrics["baseline_costs"][row]
            cells = _cost(cost["trainable"], metrics["total"], cost["seconds"], cost["bytes"])
            table.add_row(name, _interval(metrics["baselines"][row]), *cells)
    cells = _cost(
        metrics["trainable"],
        metrics["total"],
        metrics["train_seconds"] + metrics["probe_seconds"],
        metrics["adapter_bytes"],
    )
    table.add_row(metrics["method"], _interval(metrics["test"]), *cells, style="bold")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for row, gain in metrics["gain_over"].items():
        bounds = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
        verdict = "" if gain["low"] > 0 or gain["high"] < 0 else ": no difference shown"
        console.print(
            f"against {BASELINES[row]}: {gain['value']:+.3f} {bounds}, paired{verdict}",
            markup=False,
        )
    for note in metrics["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {out / 'report.html'}   adapter: {out / 'adapter'}", markup=False)


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _cost(trainable: int, total: int, seconds: float, size: int) -> tuple[str, str, str]:
    if not trainable:
        return "–", "–", "–"
    return f"{trainable:,} ({trainable / total:.2%})", f"{seconds:.1f}", _size(size)


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
