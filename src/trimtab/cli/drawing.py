"""`trimtab inspect --picture`, and `trimtab inspect` of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import InputError

if TYPE_CHECKING:
    from trimtab.compare.column import Cell
    from trimtab.plan import Plan


def inspect(path: str, picture: Path | None, json_: bool) -> bool:
    """Draw a run or a plan; whether nothing is left to be said of it."""
    plan = path.endswith((".yaml", ".yml"))
    if plan:
        from trimtab.plan import read

        found = read(Path(path))
        if picture is not None:
            _draw(
                _of_plan(found), f"The plan {Path(path).name}", _about(found), "parameters", picture
            )
        if json_:
            print(json.dumps(found.content()))
        else:
            from trimtab.cli.plan import show_plan

            show_plan(found, path)
    elif picture is not None:
        _draw_run(Path(path), picture)
    if picture is not None and not json_:
        print(f"picture: {picture}")
    return plan


def _draw_run(path: Path, picture: Path) -> None:
    """What a run has changed where, over what its plan measured, if it had one."""
    from trimtab.compare.column import Cell
    from trimtab.store.describe import describe
    from trimtab.tune.folder import Run

    saved, run = describe(path), Run(path)
    plan = run.config().build_plan() if run.config_file.exists() else None
    known = {entry.site: entry.sensitivity for entry in plan.entries} if plan else {}
    norms = any(site.norm is not None for site in saved.sites)
    cells = {site: Cell(site, value, 0.0, "") for site, value in known.items()}
    for site in saved.sites:
        if site.method == "whole":
            continue
        rank = site.shapes["A"][0] if "A" in site.shapes else None
        spent = (site.norm or 0.0) if norms else float(site.parameters)
        told = site.method if rank is None else f"rank {rank}"
        cells[site.name] = Cell(site.name, known.get(site.name), spent, told)
    if not cells:
        raise InputError(f"{path} has no sites to draw: it trains the base's own parameters")
    bars = "norm of what was changed" if norms else "trained parameters"
    _draw([*cells.values()], f"The run {path.name}", _about(plan) if plan else "", bars, picture)


def _of_plan(plan: Plan) -> list[Cell]:
    from trimtab.compare.column import Cell

    cells: dict[str, Cell] = {}
    for entry in plan.entries:
        rank = "" if not entry.taken else f"rank {entry.rank}" if entry.rank else entry.method
        held = cells.get(entry.site, Cell(entry.site, None, 0.0, ""))
        worth = (held.sensitivity or 0.0) + (entry.sensitivity or 0.0)
        cells[entry.site] = Cell(
            entry.site,
            worth if entry.sensitivity is not None else held.sensitivity,
            held.spent + (entry.cost or 0 if entry.taken else 0),
            " + ".join(filter(None, (held.told, rank))),
        )
    return [*cells.values()]


def _about(plan: Plan) -> str:
    from trimtab.tune.planning import told

    where = f" on {Path(plan.data).name}" if plan.data else ""
    by = f"budget {plan.budget}, by {plan.estimator}"
    return f"{plan.model or 'A model'}{where}, {by}; {told(plan)}."


def _draw(cells: list[Cell], title: str, about: str, spent: str, picture: Path) -> None:
    from trimtab.compare.column import draw

    if picture.suffix not in (".html", ".htm"):
        raise InputError(f"--picture {picture}: it is a page, such as plan.html")
    draw(cells, title, about, spent, picture)
