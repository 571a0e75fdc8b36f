"""`trimtab data check`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.assignment import assignment

if TYPE_CHECKING:
    from trimtab.data.check import Findings, Lengths, Split
    from trimtab.tasks.task import Task

Option = typer.Option
_BAR, _FEW = 30, 20  # the longest bar, and the labels or faults that are shown


def register(app: typer.Typer) -> None:
    data = typer.Typer(
        help="Look at data before a model is trained on it.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    data.callback()(_nothing)  # without it, Typer would make the only verb the program itself
    data.command(
        "check",
        help=(
            "Columns, splits, labels, lengths, duplicates and broken rows of a data set. Ends with "
            "1 where a run would refuse it."
        ),
        epilog="Example: trimtab data check reviews.csv --task text-classification --model minilm",
    )(check)
    app.add_typer(data, name="data")


def _nothing() -> None:
    pass


def check(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a hub name.")],
    task: Annotated[str, Option(help="A task by the hub's name.")] = "text-classification",
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    columns: Annotated[
        list[str] | None, Option("--column", help="Which column is which: text=review. Repeatable.")
    ] = None,
    text_column: Annotated[str | None, Option(help="The column with the text.")] = None,
    label_column: Annotated[str | None, Option(help="The column with the label.")] = None,
    model: Annotated[
        str | None, Option(help="Measure texts in this model's tokens, against its limit.")
    ] = None,
    seed: Annotated[int, Option(help="Of the splits that a run makes.")] = 0,
    out: Annotated[Path | None, Option(help="Write a page with pictures: data.html.")] = None,
    json_: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> int:
    from trimtab.data.check import check as call
    from trimtab.tasks import lookup
    from trimtab.tune.session import faults

    options = dict(assignment(one, "task_arg") for one in task_arg or ())
    names = dict(assignment(one, "column") for one in columns or ())
    for key, name in (("text", text_column), ("label", label_column)):
        names |= {} if name is None else {key: name}
    asked = lookup(task, options)
    count, limit = _measure(asked, model) if model else (None, None)
    found = call(
        source,
        asked.columns,
        names=names,
        seed=seed,
        count=count,
        limit=limit,
        fault=faults(asked, model) if model else asked.fault,
        arrange=functools.partial(asked.arranged, model=model, new=False) if model else None,
    )
    if out is not None:
        from trimtab.data.page import write

        write(found, task, out)
    if json_:
        print(json.dumps({**dataclasses.asdict(found), "broken": found.broken}))
    else:
        _print(found, out)
    return 1 if found.broken or found.problems else 0


Count = Callable[[Sequence[str]], list[int]]


def _measure(task: Task, model: str) -> tuple[Count | None, int | None]:
    """How long texts are in tokens, and how long they may be, if the model reads any."""
    from transformers import PreTrainedTokenizerBase

    from trimtab.tasks.models import configuration, position_limit

    processor = task.processor(model)
    found = getattr(processor, "tokenizer", processor)
    if not isinstance(found, PreTrainedTokenizerBase):
        return None, None
    tokenizer = found
    limit = position_limit(configuration(model), tokenizer)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]

    return count, limit if limit < 10**9 else None


# Printing


def _print(found: Findings, out: Path | None) -> None:
    from trimtab.cli.table import output, say, show

    console = output()
    rows = [
        (one.name, one.kind, one.found or ("none" if one.required else "none, not needed"))
        for one in found.columns
    ]
    show(console, ("column", "taken for", "in the data"), rows)
    if found.unused:
        say(console, f"not used: {', '.join(map(repr, found.unused))}")
    head = ("split", "rows", "broken", "duplicates", "also in train", "near empty")
    rows = [
        (f"{one.name}, held out" if one.made else one.name, *map(_number, _counts(one)))
        for one in found.splits
    ]
    console.print()
    show(console, head, rows, right=head[1:])
    if found.label:
        console.print()
        _labels(console, found)
    if found.lengths:
        console.print()
        _lengths(console, found.lengths)
    for line in (*_warnings(found), *(f"note: {note}" for note in found.notes)):
        say(console, line)
    _faults(console, found)
    if out is not None:
        say(console, f"page: {out}")


def _counts(split: Split) -> tuple[int, ...]:
    return split.rows, len(split.faults), split.duplicates, split.shared, len(split.empty)


def _number(value: int) -> str:
    return f"{value:,}"


def _labels(console: Any, found: Findings) -> None:
    """A bar for each label, by its rows in train."""
    from trimtab.cli.table import say, show

    train, *others = found.splits
    if not train.labels:
        return
    most = max(train.labels.values())
    rows = [
        (
            name,
            f"{n:,}",
            f"{100 * n / max(train.rows, 1):.1f} %",
            "█" * max(1, round(_BAR * n / most)),
            *(f"{split.labels.get(name, 0):,}" for split in others),
        )
        for name, n in list(train.labels.items())[:_FEW]
    ]
    head = (found.label or "", "train", "share", "balance", *(split.name for split in others))
    show(console, head, rows, right=("train", "share", *head[4:]), drop=("share", "balance"))
    if len(train.labels) > _FEW:
        say(console, f"and {len(train.labels) - _FEW:,} more labels")


def _lengths(console: Any, lengths: Sequence[Lengths]) -> None:
    from trimtab.cli.table import show

    head = ("length", "unit", "least", "half", "90 %", "95 %", "99 %", "most", "limit", "cut")
    rows = [
        (
            one.column,
            one.unit,
            *(f"{one.percentiles[p]:,g}" for p in sorted(one.percentiles)),
            "–" if one.limit is None else f"{one.limit:,}",
            "–" if one.over is None else f"{100 * one.over:.1f} %",
        )
        for one in lengths
    ]
    show(console, head, rows, right=head[2:], drop=("90 %", "99 %"))


def _warnings(found: Findings) -> list[str]:
    said = []
    if found.rare:
        few = [f"{name!r} ({n})" for name, n in list(found.rare.items())[:_FEW]]
        more = f" and {len(found.rare) - _FEW:,} more" if len(found.rare) > _FEW else ""
        said.append(f"under-represented in train: {', '.join(few)}{more}")
    if found.contradictions:
        said.append(
            f"rows of train with the same content and another label: {found.contradictions:,}"
        )
    for split in found.splits:
        if split.empty:
            lines = ", ".join(map(str, split.empty[:5])) + ", …" * (len(split.empty) > 5)
            said.append(f"near empty: {split.where}, {split.unit} {lines}")
    return said


def _faults(console: Any, found: Findings) -> None:
    from trimtab.cli.table import say

    for split in found.splits:
        for fault in split.faults[:_FEW]:
            say(console, f"broken: {split.where}, {split.unit} {fault.line}: {fault.reason}")
        if len(split.faults) > _FEW:
            say(console, f"and {len(split.faults) - _FEW:,} more broken rows in {split.where}")
    for problem in found.problems:
        say(console, f"a run would refuse this: {problem}")
