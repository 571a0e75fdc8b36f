"""`trimtab methods`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from trimtab.core.errors import InputError


def register(app: typer.Typer) -> None:
    app.command(
        "methods",
        help="What each method can do, found by trying it.",
        epilog="Example: trimtab methods lora; trimtab methods --json; "
        "trimtab methods --probe --method lora",
    )(methods)


Names = list[str] | None


def methods(
    names: Annotated[
        Names, Argument(metavar="NAME…", help="These alone; as a table's rows, all that is known.")
    ] = None,
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    probe: Annotated[bool, Option("--probe", help="Hold the methods to the laws instead.")] = False,
    method: Annotated[Names, Option(help="Another way to give a NAME; may be repeated.")] = None,
    law: Annotated[Names, Option(help="With --probe: this law; may be repeated.")] = None,
    architecture: Annotated[
        Names, Option(help="With --probe: on this architecture; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="The file of --overhead, or of --probe, which goes on with one that is there."),
    ] = None,
    jobs: Annotated[
        int | None, Option(min=1, help="Processes; left out, as many as cores, and 1 with --probe.")
    ] = None,
    overhead: Annotated[
        bool, Option("--overhead", help="Measure instead what each costs in time, here.")
    ] = False,
) -> int:
    chosen = [*(names or ()), *(method or ())]
    if overhead:
        return _overhead(chosen, out, json_)
    if probe:
        return _probe(chosen, law or [], architecture or [], out, jobs or 1, json_)
    if law or architecture or out:
        raise InputError(
            "--law, --architecture and --out belong to --probe, and --out to --overhead; "
            "docs/methods has a page for each method"
        )
    _show(chosen, jobs, json_)
    return 0


_MOST_JOBS = 4  # each loads the libraries anew: some seconds, and more than half a gigabyte
_WORTH_A_JOB = 8  # methods


def _show(chosen: list[str], jobs: int | None, json_: bool) -> None:
    """The table; of what is named, everything."""
    from trimtab.capabilities import recipes, rows
    from trimtab.core.registry import methods
    from trimtab.testing.conformance import named
    from trimtab.tune.phases import Phases

    wanted = named({**methods(), **recipes()}, chosen, "method or recipe")
    probed = [name for name in wanted if name in methods()]
    jobs = jobs or max(1, min(_MOST_JOBS, os.cpu_count() or 1, len(probed) // _WORTH_A_JOB))
    told = Phases(quiet=not probed or (json_ and not sys.stderr.isatty()))
    found = dict(told.track(rows(probed, jobs), _probing(probed), len(probed)))
    found |= {name: row for name, row in recipes().items() if name in wanted}
    if json_:
        print(json.dumps(found))
    elif chosen:
        _details(found)
    else:
        _table(found)


def _probing(names: list[str]) -> str:
    if len(names) <= 3:
        return f"probing {', '.join(names)}"
    return f"probing {len(names)} methods, about a second each"


def _details(found: dict[str, dict[str, Any]]) -> None:
    from trimtab.cli import details, table

    console = table.output()
    for place, (name, row) in enumerate(found.items()):
        told = details.of_recipe if row["kind"] == "recipe" else details.of_method
        for line in [*([""] if place else []), *told(name, row)]:
            table.say(console, line)


def _table(found: dict[str, dict[str, Any]]) -> None:
    from trimtab.capabilities import HEAD, NOTE, cells
    from trimtab.cli import table

    console = table.output()
    told = [name for name, row in found.items() if row["kind"] == "recipe"]
    left_out = table.show(
        console,
        HEAD,
        [cells(name, row) for name, row in found.items() if name not in told],
        words=_WORDS,
        drop=_DISPENSABLE,
    )
    table.say(console, NOTE)
    for name in told:
        row = found[name]
        over = f"over {row['method'] or 'any method'}"
        table.say(console, f"recipe {name}, {over}: {row['about']} ({row['module']})")
    if left_out:
        more = "trimtab methods NAME, a wider terminal, or --json"
        table.say(console, f"Left out: {', '.join(left_out)}. They are in {more}.")


_WORDS = ("targets", "acts on", "can be", "quantised bases", "needs")
_DISPENSABLE = ("acts on", "targets", "quantised bases", "kind", "needs", "HF PEFT", "lr", "can be")
"""The columns that may be wrapped, and those that go where the terminal is narrow, in order."""


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
