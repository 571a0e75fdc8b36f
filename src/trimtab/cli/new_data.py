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
        epilog="Example: trimtab eval runs/reviews --data new.csv",
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
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    from trimtab.evaluate.run import evaluate as call

    columns = _named(column, text=text_column, label=label_column)
    result = call(run, data, split, columns=columns, skip_bad_rows=skip_bad_rows, quiet=json_)
    if json_:
        print(json.dumps(result))
        return
    for name, key in (
        ("adapted", "value"),
        ("base", "base"),
        ("gain over base, paired", "gain_over_base"),
    ):
        value = result[key]
        interval = f"[{value['low']:.4f}, {value['high']:.4f}]"
        print(
            f"{name}: {result['metric']} {value['value']:.4f} {interval} on {value['n']} examples"
        )
    for note in result["notes"]:
        print(f"note: {note}")


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
