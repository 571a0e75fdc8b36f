"""`trimtab eval` and `trimtab predict`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer

from trimtab.cli.assignment import assignment

Option = typer.Option


def register(app: typer.Typer) -> None:
    app.command(
        "eval",
        help="A trained adapter's quality, with its interval, on the run's data or on new data.",
        epilog="Example: trimtab eval runs/reviews --data new.csv --slice country --calibration",
    )(evaluate)
    app.command(
        "predict",
        help="A trained adapter on new texts, pictures, recordings, rows; a JSON object a line.",
        epilog="Example: echo 'a fine film' | trimtab predict runs/reviews --data -",
    )(predict)


def evaluate(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    data: Annotated[
        str | None, Option(help="A file, or - ; the run's own data if left out.")
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"], Option(help="Of the run's own data.")
    ] = "test",
    column: Annotated[
        list[str] | None, Option(help="Which column of --data is which: text=review. Repeatable.")
    ] = None,
    text_column: Annotated[str | None, Option(help="The column with the text, in --data.")] = None,
    label_column: Annotated[
        str | None, Option(help="The column with the label, in --data.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, Option("--skip-bad-rows", help="Go on without broken rows.")
    ] = False,
    slices: Annotated[
        list[str] | None, Option("--slice", help="The metric by a column's values. Repeatable.")
    ] = None,
    fairness: Annotated[
        list[str] | None, Option(help="Rates by the groups of a column, and gaps. Repeatable.")
    ] = None,
    positive: Annotated[
        str | None, Option(help="With --fairness: the label that is the good one.")
    ] = None,
    calibration: Annotated[
        bool, Option("--calibration", help="Whether the model is as often right as it is sure.")
    ] = False,
    robustness: Annotated[
        bool, Option("--robustness", help="The metric under typos, another case, or noise.")
    ] = False,
    stereotypes: Annotated[
        bool, Option("--stereotypes", help="Of a language model: sentences that differ by group.")
    ] = False,
    out: Annotated[
        str | None, Option(help="A folder for eval.json and a page with pictures, eval.html.")
    ] = None,
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    from trimtab.evaluate.run import Asked
    from trimtab.evaluate.run import evaluate as call

    columns = _named(column, text=text_column, label=label_column)
    asked = Asked(
        slices=tuple(slices or ()),
        fairness=tuple(fairness or ()),
        positive=positive,
        calibration=calibration,
        robustness=robustness,
        stereotypes=stereotypes,
    )
    result = call(
        run,
        data,
        split,
        columns=columns,
        skip_bad_rows=skip_bad_rows,
        quiet=json_,
        asked=asked,
        out=out,
    )
    if json_:
        print(json.dumps(result))
        return
    from trimtab.cli.evaluated import print_evaluation

    print_evaluation(result, out)


def predict(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    data: Annotated[
        str,
        Option(
            help="A file with what the task reads, a picture or recording, a folder of them; or - "
            "for standard input: such a file, or lines."
        ),
    ] = "-",
    column: Annotated[
        list[str] | None, Option(help="Which column is which: text=review. Repeatable.")
    ] = None,
    text_column: Annotated[str | None, Option(help="The column with the text.")] = None,
    skip_bad_rows: Annotated[
        bool, Option("--skip-bad-rows", help="Go on without broken rows.")
    ] = False,
    json_: Annotated[bool, Option("--json", help="One JSON list in place of lines.")] = False,
) -> None:
    from trimtab.evaluate.run import predict as call

    columns = _named(column, text=text_column)
    rows = call(run, data, columns=columns, skip_bad_rows=skip_bad_rows)
    if json_:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def _named(assigned: list[str] | None, **columns: str | None) -> dict[str, str]:
    given = dict(assignment(one, "column") for one in assigned or ())
    return {**given, **{name: one for name, one in columns.items() if one is not None}}
