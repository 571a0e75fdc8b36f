"""`trimtab compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.assignment import assignment
from trimtab.core.errors import InputError

Option = typer.Option
_EXAMPLE = (
    "Example: trimtab compare --model minilm --data reviews.csv --methods lora,bitfit,ia3 "
    "--steps 200 --trials 3 --out runs/compare"
)


def register(app: typer.Typer) -> None:
    app.command(
        "compare",
        help=(
            "Several methods, full fine-tuning, the last layers, the head alone and few-shot "
            "examples on the same work: was it worth it? A call with the same --out goes on."
        ),
        epilog=_EXAMPLE,
    )(compare)


def compare(
    model: Annotated[str | None, Option(help="A base: hub name, folder, or minilm.")] = None,
    models: Annotated[str | None, Option(help="Several bases, comma-separated.")] = None,
    data: Annotated[
        str | None, Option(help="CSV, TSV, JSONL, Parquet, a folder of splits, or a hub name.")
    ] = None,
    out: Annotated[str | None, Option(help="The comparison's folder.")] = None,
    task: Annotated[
        str | None, Option(help="A task by the hub's name; text-classification.")
    ] = None,
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    column: Annotated[
        list[str] | None, Option(help="Which column is which: text=review. Repeatable.")
    ] = None,
    methods: Annotated[
        str | None, Option(help="Comma-separated, see trimtab methods; lora,bitfit.")
    ] = None,
    method_arg: Annotated[
        list[str] | None,
        Option(help="A hyper-parameter of one method: lora.rank=4. Repeatable."),
    ] = None,
    steps: Annotated[int | None, Option(help="Optimizer steps of every run; 200.")] = None,
    trials: Annotated[
        int | None, Option(help="Learning rates tried around each method's own; 3.")
    ] = None,
    seeds: Annotated[int | None, Option(help="Runs at the chosen learning rate; 1.")] = None,
    seed: Annotated[int | None, Option(help="The first of them; 0.")] = None,
    sizes: Annotated[
        str | None, Option(help="Rows of train, for learning curves: 32,128,all; all.")
    ] = None,
    shots: Annotated[int | None, Option(help="Worked examples in a prompt; 8.")] = None,
    orders: Annotated[int | None, Option(help="Orders of them that are tried; 4.")] = None,
    baselines: Annotated[
        bool | None,
        Option("--baselines/--no-baselines", help="Also full, layers and head; yes."),
    ] = None,
    tune_arg: Annotated[
        list[str] | None, Option(help="Any field of tune: batch_size=16. Repeatable.")
    ] = None,
    probe: Annotated[
        str | None, Option(help="A text file, a sentence a line: what should not be forgotten.")
    ] = None,
    watts: Annotated[
        float | None, Option(help="The machine's power, where it has no counters to read.")
    ] = None,
    intensity: Annotated[
        float | None, Option(help="g CO2 for each kWh; 480, the world's electricity in 2023.")
    ] = None,
    margin: Annotated[
        float | None, Option(help="What may be lost against full; a hundredth of the metric.")
    ] = None,
    json_: Annotated[bool, Option("--json", help="Print compare.json, and no progress.")] = False,
) -> None:
    given: dict[str, Any] = {k: v for k, v in locals().items() if v is not None and k != "json_"}
    for key in ("task_arg", "tune_arg"):
        if key in given:
            given[key] = dict(assignment(one, key) for one in given[key])
    if "column" in given:
        given["columns"] = dict(assignment(one, "column") for one in given.pop("column"))
    if "method_arg" in given:
        given["method_arg"] = _by_method(given["method_arg"])
    from trimtab.compare.campaign import compare as run
    from trimtab.compare.request import open_request

    request = open_request(given)
    found = run(request, quiet=json_)
    if json_:
        print(json.dumps(found))
    else:
        from trimtab.cli.compared import print_comparison

        print_comparison(found, Path(request.out))


def _by_method(given: list[str]) -> dict[str, dict[str, Any]]:
    """`lora.rank=4` as {"lora": {"rank": 4}}."""
    found: dict[str, dict[str, Any]] = {}
    for one in given:
        name, value = assignment(one, "method_arg")
        method, dot, argument = name.partition(".")
        if not dot or not argument:
            raise InputError(
                f"--method-arg {one}: say of which method, such as --method-arg lora.rank=4"
            )
        found.setdefault(method, {})[argument] = value
    return found
