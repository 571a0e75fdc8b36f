"""`trimtab methods`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(
        "methods",
        help="What each method can do, found by trying it.",
        epilog="Example: trimtab methods --json",
    )(methods)


def methods(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    from trimtab.capabilities import STANDARD, table

    rows = table()
    if json_:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(header_style="bold", pad_edge=False)
    for name in (
        "method",
        "layers",
        "merges",
        "stacks",
        "HF PEFT",
        f"parameters at {STANDARD}²",
        "lr",
    ):
        shown.add_column(name)
    for name, row in rows.items():
        shown.add_row(
            name,
            ", ".join(row["layers"]) or "the base's own",
            "yes" if row["mergeable"] else "no",
            "yes" if row["stackable"] else "no",
            row["hf_peft"] or "–",
            f"{row['parameters']:,}" if row["parameters"] else "–",
            f"{row['learning_rate']:g}",
        )
    Console(highlight=False).print(shown)
