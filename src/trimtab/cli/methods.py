"""`trimtab methods`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from trimtab.core.errors import InputError


def register(app: typer.Typer) -> None:
    app.command(
        "methods",
        help="What each method can do, found by trying it.",
        epilog="Example: trimtab methods --json; trimtab methods --probe --method lora",
    )(methods)


Names = list[str] | None
_WIDE = 150  # columns of a terminal that shows the whole table


def methods(
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    probe: Annotated[bool, Option("--probe", help="Hold the methods to the laws instead.")] = False,
    method: Annotated[
        Names, Option(help="With --probe or --overhead: this one; may be repeated.")
    ] = None,
    law: Annotated[Names, Option(help="With --probe: this law; may be repeated.")] = None,
    architecture: Annotated[
        Names, Option(help="With --probe: on this architecture; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="The file of --overhead, or of --probe, which goes on with one that is there."),
    ] = None,
    jobs: Annotated[int, Option(min=1, help="With --probe: processes.")] = 1,
    overhead: Annotated[
        bool, Option("--overhead", help="Measure instead what each costs in time, here.")
    ] = False,
) -> int:
    if overhead:
        return _overhead(method or [], out, json_)
    if probe:
        return _probe(method or [], law or [], architecture or [], out, jobs, json_)
    if method or law or architecture or out or jobs != 1:
        raise InputError(
            "--method, --law, --architecture, --out and --jobs belong to --probe, and --method and "
            "--out to --overhead; docs/methods has a page for each method"
        )
    from trimtab.capabilities import HEAD, NOTE, cells, recipes, table

    rows = table()
    if json_:
        print(json.dumps({**rows, **recipes()}))
        return 0
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    narrow = console.width < _WIDE
    left_out = {"kind", "targets", "acts on", "needs", "lr", "quantised bases"} if narrow else set()
    shown = Table(header_style="bold", pad_edge=False, box=None if narrow else HEAVY_HEAD)
    for name in HEAD:
        if name not in left_out:
            least = max(map(len, rows)) if name == "method" else None
            shown.add_column(name, no_wrap=narrow or name == "method", min_width=least)
    for name, row in rows.items():
        named = zip(HEAD, cells(name, row), strict=True)
        shown.add_row(*(cell for column, cell in named if column not in left_out))
    console.print(shown)
    console.print(NOTE, markup=False)
    for name, row in recipes().items():
        over = f"over {row['method'] or 'any method'}"
        console.print(f"recipe {name}, {over}: {row['about']} ({row['module']})", markup=False)
    if narrow:
        console.print(
            "Kinds, targets, layers, quantised bases, learning rates: a wider terminal, or --json."
        )
    return 0


def _overhead(method: list[str], out: Path | None, json_: bool) -> int:
    """Each as soon as it is measured; with --out into a file, beside what is there already."""
    import dataclasses

    from rich.console import Console
    from rich.progress import track

    from trimtab.core.registry import methods
    from trimtab.overhead import overheads
    from trimtab.store.files import read_json, write_json
    from trimtab.testing import conformance
    from trimtab.tune import hardware

    chosen = conformance.named(methods(), method, "method")
    found = {}
    console = Console(stderr=True)
    for name, one in track(
        overheads(chosen), "measuring", total=len(chosen), console=console, transient=True
    ):
        found[name] = dataclasses.asdict(one)
        if not json_:
            times = f"forward {one.forward} of the base's, step {one.step} of full fine-tuning's"
            print(f"{name:<18} {one.refused or times}")
    before = read_json(out)["methods"] if out and out.exists() else {}
    told = {
        "hardware": hardware.facts(),
        "versions": hardware.versions(),
        "methods": dict(sorted({**before, **found}.items())),
    }
    if out:
        write_json(out, told)
    if json_:
        print(json.dumps(told))
    return 0


def _probe(
    method: list[str],
    law: list[str],
    architecture: list[str],
    out: Path | None,
    jobs: int,
    json_: bool,
) -> int:
    """Exit code 1 if anything is broken."""
    from rich.console import Console
    from rich.progress import Progress

    from trimtab.core.registry import methods
    from trimtab.store.files import write_text
    from trimtab.testing import conformance, matrix
    from trimtab.testing.architectures import ARCHITECTURES
    from trimtab.testing.laws import LAWS

    chosen = conformance.named(methods(), method, "method")
    laws = conformance.named(LAWS, law, "law")
    places = conformance.named(
        {one.name: one for one in ARCHITECTURES}, architecture, "architecture"
    )
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder: --out names a file in one that is there")
    before = conformance.read(out) if out else conformance.Table()
    table = conformance.read(out) if out else conformance.Table()
    todo = conformance.tasks(table, chosen, laws, places)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("probing", total=len(todo))
        for entry in conformance.probe(todo, jobs):
            table.put(entry)
            if out:
                write_text(out, table.text())
            progress.update(bar, advance=1, description=f"{entry.method}, {entry.law}")
            for row in entry.of("broken"):
                progress.print(
                    f"broken: {entry.method}, {row.law} on {row.architecture}: {row.why}",
                    markup=False,
                    soft_wrap=True,
                )
    if json_:
        print(table.text())
    else:
        for line in matrix.summary(table, chosen):
            print(line)
    if out:
        for line in conformance.changes(before, table):
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if table.broken else 0
