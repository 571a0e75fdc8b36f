"""`trimtab inspect`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

_BAR = 30


def register(app: typer.Typer) -> None:
    app.command(
        "inspect",
        help="What a saved adapter is: base, methods, sites, size, and how much it changes where.",
        epilog="Example: trimtab inspect runs/reviews",
    )(inspect)


def inspect(
    path: Annotated[str, typer.Argument(help="A run's folder, or an adapter's.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from trimtab.cli.table import output, say
    from trimtab.core.counts import size
    from trimtab.store.describe import describe

    saved = describe(path)
    if json_:
        print(json.dumps({**dataclasses.asdict(saved), "folder": str(saved.folder)}))
        return
    base, console = saved.base, output()
    said = [
        ("adapter", f"{saved.name} ({saved.format} format, {size(saved.bytes)})"),
        ("base", f"{base['class'] or '?'} {base['name'] or ''}".rstrip()),
        ("fingerprint", base["fingerprint"] or "not in this format"),
    ]
    for entry in saved.methods:
        arguments = ", ".join(f"{k}={v}" for k, v in entry.items() if k not in {"method", "sites"})
        places = f"{entry['sites']} site{'s' * (entry['sites'] != 1)}"
        said.append(("method", f"{entry['method']}({arguments}) at {places}"))
    for what, text in [*said, ("parameters", f"{saved.parameters:,}")]:
        say(console, f"{what:<13}{text}")
    say(console, "\nnorm of the change, by site, where the file alone tells it")
    _picture(console, saved.sites)


def _picture(console: Any, sites: list[Any]) -> None:
    from trimtab.cli.table import show

    largest = max((site.norm or 0.0 for site in sites), default=0.0) or 1.0
    rows = []
    for site in sites:
        bar = "█" * round(_BAR * (site.norm or 0.0) / largest)
        norm = "–" if site.norm is None else f"{site.norm:.3f}"
        shapes = ", ".join(
            f"{name} {'×'.join(map(str, shape))}" for name, shape in site.shapes.items()
        )
        shapes = shapes if len(shapes) <= 60 else f"{len(site.shapes)} tensors"
        rows.append((site.name, norm, bar, shapes))
    head = ("site", "norm", "change", "tensors")
    show(console, head, rows, right=("norm",), drop=("change", "tensors"))
