"""`trimtab plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimtab.cli.assignment import assignment
from trimtab.core.errors import InputError

if TYPE_CHECKING:
    from trimtab.plan import Plan

Option = typer.Option
_BAR, _FEW = 24, 12  # the longest bar, and the sites that are shown


def register(app: typer.Typer) -> None:
    app.command(
        "plan",
        help="Measure what to train: sites, ranks and method under a budget, from a few batches.",
        epilog="Example: trimtab plan --model minilm --data reviews.csv --budget 0.5% "
        "--out plan.yaml; then trimtab tune --plan plan.yaml …",
    )(plan)


def plan(
    file: Annotated[
        Path | None, typer.Argument(help="A YAML file with fields of trimtab tune.")
    ] = None,
    model: Annotated[str | None, Option(help="Hub name, folder, or minilm.")] = None,
    data: Annotated[str | None, Option(help="As trimtab tune takes it.")] = None,
    budget: Annotated[
        str | None, Option(help="0.5% of the base, 200k parameters, 1MB, or 60s of training.")
    ] = None,
    out: Annotated[str, Option(help="The plan's file.")] = "plan.yaml",
    task: Annotated[str | None, Option(help="A task by the hub's name.")] = None,
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    methods: Annotated[
        str | None,
        Option(
            "--methods", "--method", help="Methods that share the budget; with --search, tried."
        ),
    ] = None,
    method_arg: Annotated[
        list[str] | None, Option(help="A hyper-parameter of the one method: name=value.")
    ] = None,
    target: Annotated[str | None, Option(help="Sites to choose from; the method's own.")] = None,
    estimator: Annotated[
        str | None, Option(help="How a rank is weighed, see docs/plan.md; nuclear.")
    ] = None,
    examples: Annotated[int | None, Option(min=2, help="Rows of train to look at; 512.")] = None,
    most: Annotated[int | None, Option(min=1, help="The highest rank at a site; 16.")] = None,
    batch_size: Annotated[int | None, Option(help="Examples in a batch; 32.")] = None,
    max_length: Annotated[int | None, Option(help="Tokens of a text at most.")] = None,
    max_steps: Annotated[int | None, Option(help="Of the run that is planned.")] = None,
    epochs: Annotated[float | None, Option(help="Of the run that is planned; 3.")] = None,
    train_rows: Annotated[int | None, Option(help="Of the run that is planned; all.")] = None,
    dtype: Annotated[str | None, Option(help="auto, bfloat16 or float32.")] = None,
    seed: Annotated[int | None, Option(help="Everything random follows from it; 0.")] = None,
    columns: Annotated[
        list[str] | None, Option("--column", help="Which column is which: text=review. Repeatable.")
    ] = None,
    skip_bad_rows: Annotated[
        bool | None, Option("--skip-bad-rows", help="Go on without broken rows.")
    ] = None,
    run: Annotated[
        str | None, Option("--from", help="Revise the plan of this finished run.")
    ] = None,
    search: Annotated[
        bool, Option("--search", help="Try methods and learning rates too, by successive halving.")
    ] = False,
    trials: Annotated[
        int | None, Option(min=1, help="With --search: how many at first; 9.")
    ] = None,
    engine: Annotated[
        Literal["optuna", "ray"] | None,
        Option(help="With --search: here (optuna), or on Ray's workers."),
    ] = None,
    workers: Annotated[
        int | None, Option(min=1, help="With --engine ray: trials at once; 2.")
    ] = None,
    json_: Annotated[bool, Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    from trimtab.tune.config import Config, read

    flags = {key: value for key, value in locals().items() if key in Config.model_fields}
    given = {key: value for key, value in flags.items() if value is not None}
    for key, flag in (
        ("method_arg", "method_arg"),
        ("task_arg", "task_arg"),
        ("columns", "column"),
    ):
        if key in given:
            given[key] = dict(assignment(one, flag) for one in given[key])
    values = {**(read(file) if file else {}), **given}
    asked = {"estimator": estimator, "examples": examples, "most": most}
    chosen = {key: value for key, value in asked.items() if value is not None}
    names = _methods(methods, values)
    if run is not None and (search or methods):
        flag = "--search" if search else "--methods"
        raise InputError(
            f"--from {run} revises the plan of the method that it ran: leave out {flag}"
        )
    how = _searching(search, {"trials": trials, "engine": engine, "workers": workers})
    found = (
        _revised(run, values, chosen)
        if run is not None
        else _made(values, names, chosen, json_)
        if not search
        else _searched(values, names, chosen, how, out, json_)
    )
    from trimtab.plan import write

    write(found, Path(out))
    if json_:
        print(json.dumps(found.content()))
    else:
        show_plan(found, out)


def _searching(search: bool, asked: dict[str, Any]) -> dict[str, Any]:
    """What is asked of the search; of no search, or of another engine, it would have no effect."""
    how = {key: value for key, value in asked.items() if value is not None}
    if how and not search:
        raise InputError(
            f"--{min(how)} is for --search, which is not asked for: add it, or leave it out"
        )
    if "workers" in how and how.get("engine") != "ray":
        raise InputError("--workers is for --engine ray: add that, or leave it out")
    return how


def _methods(given: str | None, values: dict[str, Any]) -> tuple[str, ...]:
    """Each once; those of the flag before that of a file, where `auto` is what a plan does."""
    of_file = values.pop("method", None)
    if given is None:
        return ("lora" if of_file in (None, "auto") else of_file,)
    return tuple(dict.fromkeys(one.strip() for one in given.split(",")))


def _made(
    values: dict[str, Any], names: tuple[str, ...], chosen: dict[str, Any], quiet: bool
) -> Plan:
    from trimtab.tune.phases import Phases
    from trimtab.tune.planning import propose

    config, request = _asked(values, names, chosen)
    return propose(config, request, Phases(quiet))


def _asked(values: dict[str, Any], names: tuple[str, ...], chosen: dict[str, Any]) -> Any:
    from trimtab.core import registry
    from trimtab.plan import parse
    from trimtab.tune.config import parse as configured
    from trimtab.tune.planning import Request

    budget = values.pop("budget", None)
    if budget is None:
        raise InputError("a plan needs --budget: 0.5%, 200k parameters, 1MB or 60s of training")
    for name in names:
        registry.lookup(name)
    held = {**values, "method": names[0], "out": "plan"}
    return configured(held, "trimtab plan"), Request(parse(budget), names, **chosen)


def _revised(run: str, values: dict[str, Any], chosen: dict[str, Any]) -> Plan:
    from trimtab.tune.revising import revise

    for key in values:
        if key != "budget":
            flag = f"--{key.replace('_', '-')}"
            raise InputError(f"--from {run} says {flag} already: leave it out")
    return revise(run, values.get("budget"), **chosen)


def _searched(
    values: dict[str, Any],
    names: tuple[str, ...],
    chosen: dict[str, Any],
    how: dict[str, Any],
    out: str,
    quiet: bool,
) -> Plan:
    from trimtab.tune.phases import Phases
    from trimtab.tune.searching import search

    config, request = _asked(values, names, chosen)
    folder = Path(out).with_suffix(".search")
    return search(config, request, folder=folder, phases=Phases(quiet), **how)


def show_plan(found: Plan, out: str) -> None:
    """The sites that get most, with a bar each, and how many get nothing."""
    from trimtab.cli.table import output, say, show
    from trimtab.core.counts import percent
    from trimtab.tune.planning import told

    console = output()
    taken = sorted(found.taken, key=lambda entry: -(entry.cost or 0))
    most = max((entry.cost or 0 for entry in taken), default=1) or 1
    rows = [
        (
            entry.site,
            entry.method,
            "–" if entry.rank is None else str(entry.rank),
            "–" if entry.gain is None else f"{entry.gain:.3g}",
            f"{entry.cost or 0:,}",
            "█" * max(1, round(_BAR * (entry.cost or 0) / most)),
        )
        for entry in taken[:_FEW]
    ]
    head = ("site", "method", "rank", "gain", "parameters", "spent")
    show(console, head, rows, right=("rank", "gain", "parameters"), drop=("spent", "gain"))
    if len(taken) > _FEW:
        say(console, f"and {len(taken) - _FEW} more sites")
    say(console, told(found))
    if found.parameters is not None and found.of:
        share = percent(found.parameters / found.of)
        say(console, f"budget {found.budget}: {share} of the base's {found.of:,} parameters")
    for note in found.notes:
        say(console, f"note: {note}")
    console.print(f"plan: {out}", markup=False, soft_wrap=True)
