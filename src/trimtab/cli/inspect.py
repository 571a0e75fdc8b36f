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
    from trimtab.store.describe import describe

    saved = describe(path)
    if json_:
        print(json.dumps({**dataclasses.asdict(saved), "folder": str(saved.folder)}))
        return
    base = saved.base
    print(f"adapter      {saved.name} ({saved.format} format, {saved.bytes / 2**20:.2f} MiB)")
    print(f"base         {base['class'] or '?'} {base['name'] or ''}".rstrip())
    print(f"fingerprint  {base['fingerprint'] or 'not in this format'}")
    for entry in saved.methods:
        arguments = ", ".join(f"{k}={v}" for k, v in entry.items() if k not in {"method", "sites"})
        print(f"method       {entry['method']}({arguments}) at {entry['sites']} sites")
    print(f"parameters   {saved.parameters:,}")
    print("\nnorm of the change, by site, where the file alone tells it")
    _picture(saved.sites)


def _picture(sites: list[Any]) -> None:
    largest = max((site.norm or 0.0 for site in sites), default=0.0) or 1.0
    width = max((len(site.name) for site in sites), default=0)
    for site in sites:
        bar = "█" * round(_BAR * (site.norm or 0.0) / largest)
        norm = "–" if site.norm is None else f"{site.norm:.3f}"
        shapes = ", ".join(
            f"{name} {'×'.join(map(str, shape))}" for name, shape in site.shapes.items()
        )
        shapes = shapes if len(shapes) <= 60 else f"{len(site.shapes)} tensors"
        print(f"  {site.name:<{width}}  {norm:>8}  {bar:<{_BAR}}  {shapes}")
