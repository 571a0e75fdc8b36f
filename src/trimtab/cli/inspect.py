"""`trimtab inspect`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.store.describe import SavedSite

_BAR, _FEW = 30, 12
_HEIGHTS = "▁▂▃▄▅▆▇█"
_BLOCK = re.compile(r"\.(\d+)(?=\.|$)")


def register(app: typer.Typer) -> None:
    app.command(
        "inspect",
        help="What a saved adapter is: base, methods, sites, size, and how much it changes where; "
        "or what a plan gives to which site.",
        epilog="Example: trimtab inspect runs/reviews --picture reviews.html",
    )(inspect)


def inspect(
    path: Annotated[str, typer.Argument(help="A run's folder, an adapter's, or a plan.")],
    sites: Annotated[
        bool, typer.Option("--sites", help="Every site on a line of its own.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the model as a column of blocks: a page, .html.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if path.endswith((".yaml", ".yml")) or picture is not None:
        from trimtab.cli import drawing

        if drawing.inspect(path, picture, json_):
            return
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
    told = any(site.norm is not None for site in saved.sites)
    why = ", where the file alone tells it" if told else " is not told by the file alone"
    say(console, f"\nnorm of the change{why}")
    (_picture if sites or len(saved.sites) <= _FEW else _blocks)(console, saved.sites)


def _picture(console: Any, sites: list[SavedSite]) -> None:
    """Each site on a line of its own, with a bar."""
    from trimtab.cli.table import show

    largest = _largest(sites)
    rows = []
    for site in sites:
        bar = "█" * round(_BAR * site.norm / largest) if _known(site) else ""
        rows.append((site.name, _norms([site]), bar, _shapes(site)))
    head = ("site", "norm", "change", "tensors")
    show(console, head, rows, right=("norm",), drop=("change", "tensors"))


def _blocks(console: Any, sites: list[SavedSite]) -> None:
    """The sites that differ in the number of their block alone on one line, a column a block."""
    from trimtab.cli.table import show

    largest = _largest(sites)
    places: dict[tuple[str, str], dict[int, SavedSite]] = {}
    for site in sites:
        block = _BLOCK.search(site.name)
        place = _BLOCK.sub(".*", site.name, 1), site.method
        places.setdefault(place, {})[int(block[1]) if block else 0] = site
    rows = []
    for (place, _), alike in places.items():
        columns = "".join(_column(alike.get(block), largest) for block in range(max(alike) + 1))
        shapes = {_shapes(site) for site in alike.values()}
        tensors = shapes.pop() if len(shapes) == 1 else "of several shapes"
        rows.append((place, str(len(alike)), _norms([*alike.values()]), columns, tensors))
    head = ("sites", "count", "norm", "by block", "tensors")
    show(console, head, rows, right=("count", "norm"), drop=("tensors", "count"))


def _column(site: SavedSite | None, largest: float) -> str:
    if site is None:
        return " "
    if site.norm is None:
        return "·"
    return _HEIGHTS[round(7 * site.norm / largest)] if _known(site) else "!"


def _known(site: SavedSite) -> bool:
    """Whether it has a norm that can be drawn: what has diverged has none."""
    return site.norm is not None and math.isfinite(site.norm)


def _largest(sites: list[SavedSite]) -> float:
    return max((site.norm for site in sites if _known(site)), default=0.0) or 1.0


def _norms(sites: list[SavedSite]) -> str:
    known = [site.norm for site in sites if site.norm is not None]
    if not known:
        return "–"
    if odd := [norm for norm in known if not math.isfinite(norm)]:
        return f"{odd[0]}"
    low, high = f"{min(known):.3f}", f"{max(known):.3f}"
    return low if low == high else f"{low} … {high}"


def _shapes(site: SavedSite) -> str:
    told = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in site.shapes.items())
    return told if len(told) <= 60 else f"{len(site.shapes)} tensors"
