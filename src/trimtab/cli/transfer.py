"""`trimtab transfer` and `trimtab sequence`: going on from adapters that there are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.assignment import assignment

if TYPE_CHECKING:
    from trimtab.tune.library import Forecast

Option = typer.Option


def register(app: typer.Typer) -> None:
    app.command(
        "transfer",
        help="Which of one's adapters is the best start for new data, before anything is trained.",
        epilog="Example: trimtab transfer runs --model minilm --data intents.csv",
    )(transfer)
    app.command(
        "sequence",
        help="Several tasks one after the other, an adapter each; what is forgotten, in a matrix.",
        epilog="Example: trimtab sequence a.csv b.csv --model minilm --out runs/sequence",
    )(sequence)


def transfer(
    library: Annotated[str, typer.Argument(help="A folder of runs, or of adapters.")],
    data: Annotated[str, Option(help="The new data, as tune takes them.")],
    model: Annotated[str, Option(help="The base of the adapters.")] = "minilm",
    task: Annotated[str, Option(help="A task by the hub's name.")] = "text-classification",
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    column: Annotated[
        list[str] | None, Option(help="Which column is which: text=review. Repeatable.")
    ] = None,
    train_rows: Annotated[int | None, Option(help="Look at so many rows of train at most.")] = None,
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    from trimtab.tune.config import parse
    from trimtab.tune.library import survey
    from trimtab.tune.phases import Phases

    fields: dict[str, Any] = {"model": model, "data": data, "task": task, "out": "-"}
    fields["task_arg"] = dict(assignment(one, "task_arg") for one in task_arg or ())
    fields["columns"] = dict(assignment(one, "column") for one in column or ())
    fields |= {} if train_rows is None else {"train_rows": train_rows}
    found = survey(parse(fields, "trimtab transfer"), library, Phases(json_))
    if json_:
        print(json.dumps([_plain(one) for one in found]))
    else:
        _print(found)


def _plain(one: Forecast) -> dict[str, Any]:
    told = {"name": one.name, "folder": None if one.folder is None else str(one.folder)}
    score = one.score if math.isfinite(one.score) else None  # JSON has no NaN
    scores = {} if one.refused else {"score": score, "probe": one.probe}
    return {**told, **scores, "refused": one.refused}


def _print(found: list[Forecast]) -> None:
    from trimtab.cli.table import output, say, show

    console = output()
    rows = [
        (one.name, f"{one.score:.4f}", "–" if one.probe is None else f"{one.probe:.3f}")
        for one in found
        if one.refused is None
    ]
    head = ("start", "predicted", "linear probe")
    show(console, head, rows, right=head[1:])
    for one in found:
        if one.refused is not None:
            say(console, f"not for this base: {one.name}: {one.refused}")
    start = found[0]
    if start.folder is not None:
        say(console, f"begin there: trimtab tune --start-from {start.folder}")
    else:
        say(console, "none of them explains the labels better than the base alone: begin afresh")


def sequence(
    data: Annotated[list[str], typer.Argument(help="The tasks' data, in their order.")],
    out: Annotated[str, Option(help="A folder for the runs, one a task, and sequence.json.")],
    file: Annotated[
        Path | None, Option("--config", help="A YAML file of tune's fields, for every task.")
    ] = None,
    model: Annotated[str | None, Option(help="Hub name, folder, or minilm.")] = None,
    task: Annotated[
        str | None, Option(help="A task by the hub's name; text-classification.")
    ] = None,
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    column: Annotated[
        list[str] | None, Option(help="Which column is which: text=review. Repeatable.")
    ] = None,
    method: Annotated[str | None, Option(help="A method: see trimtab methods; lora.")] = None,
    rank: Annotated[int | None, Option(help="Rank, for methods that have one.")] = None,
    lr: Annotated[float | None, Option(help="Peak learning rate; the method's.")] = None,
    max_steps: Annotated[int | None, Option(help="Optimizer steps of each task.")] = None,
    batch_size: Annotated[int | None, Option(help="Examples in a batch; 32.")] = None,
    seed: Annotated[int | None, Option(help="Everything random follows from it; 0.")] = None,
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    from trimtab.tune.config import Config, read
    from trimtab.tune.sequence import sequence as call

    given = {key: value for key, value in locals().items() if value is not None}
    flags = {key: value for key, value in given.items() if key in Config.model_fields}
    for key in ("data", "out"):
        del flags[key]
    if task_arg:
        flags["task_arg"] = dict(assignment(one, "task_arg") for one in task_arg)
    if column:
        flags["columns"] = dict(assignment(one, "column") for one in column)
    fields = {"model": "minilm", "method": "lora", **(read(file) if file else {}), **flags}
    found = call(data, out, fields, quiet=json_)
    if json_:
        print(json.dumps(found))
        return
    from trimtab.cli.table import output, say, show

    console, names = output(), found["tasks"]
    rows = [
        (f"after {names[i]}", *("–" if value is None else f"{value:.4f}" for value in row))
        for i, row in enumerate(found["matrix"])
    ]
    show(console, ("", *names), rows, right=names)
    same = "bit for bit" if found["same_outputs"] else "but outputs differ"
    say(console, f"forgetting: {max(found['forgetting']):.4f} at most, {same}")
