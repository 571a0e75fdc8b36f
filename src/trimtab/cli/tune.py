"""`trimtab tune` and `trimtab demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli.assignment import assignment
from trimtab.core.errors import InputError

Option = typer.Option


def register(app: typer.Typer) -> None:
    app.command(
        "demo",
        help="Run the main job on the embedded model and data, offline.",
        epilog="Example: trimtab demo --out runs/demo",
    )(demo)
    app.command("tune", help="Adapt a model to a task.", epilog=_EXAMPLE)(tune)


_FLAGS = {"columns": "column"}  # a field whose flag is called otherwise

_EXAMPLE = (
    "Example: trimtab tune --model minilm --data reviews.csv --method lora --out runs/reviews"
)


def tune(
    file: Annotated[Path | None, typer.Argument(help="A YAML file with the same fields.")] = None,
    model: Annotated[str | None, Option(help="Hub name, folder, or minilm.")] = None,
    data: Annotated[
        str | None, Option(help="CSV, TSV, JSONL, Parquet, a folder of splits, or a hub name.")
    ] = None,
    out: Annotated[str | None, Option(help="The run's folder.")] = None,
    task: Annotated[
        str | None, Option(help="A task by the hub's name, see docs/tasks.md; text-classification.")
    ] = None,
    task_arg: Annotated[
        list[str] | None, Option(help="Any option of the task: name=value. Repeatable.")
    ] = None,
    method: Annotated[
        str | None, Option(help="A method: see trimtab methods; or auto, by a plan; lora.")
    ] = None,
    plan: Annotated[
        str | None, Option(help="A plan's file: sites, methods and ranks, from trimtab plan.")
    ] = None,
    force_plan: Annotated[
        bool | None, Option("--force-plan", help="Take a plan that was made for another base.")
    ] = None,
    budget: Annotated[
        str | None, Option(help="Of --method auto: 0.5%, 200k parameters, 1MB or 60s.")
    ] = None,
    target: Annotated[
        str | None, Option(help="Sites: a role, glob, re:…, or names, comma-separated.")
    ] = None,
    rank: Annotated[int | None, Option(help="Rank, for methods that have one.")] = None,
    alpha: Annotated[float | None, Option(help="Scale, for methods that have one.")] = None,
    ranks: Annotated[
        list[str] | None, Option(help="Rank at a target: query=16. Repeatable.")
    ] = None,
    method_arg: Annotated[
        list[str] | None, Option(help="Any hyper-parameter of the method: name=value. Repeatable.")
    ] = None,
    train: Annotated[
        str | None, Option(help="Modules to train whole, comma-separated; a new head always is.")
    ] = None,
    start_from: Annotated[
        str | None, Option(help="Begin at a trained adapter: its folder, or best:FOLDER of them.")
    ] = None,
    from_library: Annotated[
        str | None, Option(help="Combine the adapters in this folder: see --combine.")
    ] = None,
    combine: Annotated[
        str | None, Option(help="fuse: learn attention over them; merge: begin at their mean.")
    ] = None,
    recipe: Annotated[
        str | None, Option(help="distill: learn from a teacher beside the labels.")
    ] = None,
    teacher: Annotated[
        str | None, Option(help="With --recipe distill: a finished run, or a trained model.")
    ] = None,
    recipe_arg: Annotated[
        list[str] | None, Option(help="Of distill: temperature=2, alpha=0.9. Repeatable.")
    ] = None,
    lr: Annotated[
        float | None, Option(help="Learning rate; the method's own, if left out.")
    ] = None,
    epochs: Annotated[float | None, Option(help="Passes over the training data; 3.")] = None,
    max_steps: Annotated[int | None, Option(help="Optimizer steps, in place of epochs.")] = None,
    batch_size: Annotated[int | None, Option(help="Examples in a batch; 32.")] = None,
    gradient_accumulation: Annotated[
        int | None, Option(help="Batches in an optimizer step; 1.")
    ] = None,
    max_length: Annotated[
        int | None, Option(help="Tokens of a text at most; from the training data.")
    ] = None,
    weight_decay: Annotated[float | None, Option(help="AdamW's weight decay; 0.")] = None,
    schedule: Annotated[
        str | None, Option(help="linear, cosine, constant, constant_with_warmup; linear.")
    ] = None,
    warmup: Annotated[float | None, Option(help="Share of the steps that warm up; 0.06.")] = None,
    patience: Annotated[
        int | None, Option(help="Stop after so many evaluations without a better one; 3.")
    ] = None,
    eval_every: Annotated[int | None, Option(help="Steps between evaluations; an epoch.")] = None,
    save_every: Annotated[
        int | None, Option(help="Steps between checkpoints; a tenth of the run.")
    ] = None,
    dtype: Annotated[str | None, Option(help="auto (by measurement), bfloat16 or float32.")] = None,
    attention: Annotated[
        str | None, Option(help="auto (by measurement), eager, sdpa, blockwise, …")
    ] = None,
    products: Annotated[
        str | None, Option(help="Of frozen maps in training: auto (by measurement), exact or int8.")
    ] = None,
    replicas: Annotated[
        int | None,
        Option(help="Parts of a batch side by side, a core each; by measurement if left out."),
    ] = None,
    workers: Annotated[
        int | None,
        Option(help="Processes that make batches beside training; by measurement if left out."),
    ] = None,
    base_dropout: Annotated[
        bool | None, Option("--base-dropout/--no-base-dropout", help="Dropout within the base.")
    ] = None,
    head_only: Annotated[
        bool | None,
        Option(
            "--head-only/--no-head-only",
            help="Train the head alone first, to compare; else a new head begins at random.",
        ),
    ] = None,
    probe_first: Annotated[
        bool | None,
        Option("--probe-first/--no-probe-first", help="Start a new head where it trains alone."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, Option("--gradient-checkpointing", help="Less memory for more time.")
    ] = None,
    seed: Annotated[int | None, Option(help="Everything random follows from it; 0.")] = None,
    report_to: Annotated[str | None, Option(help="Trackers: tensorboard, mlflow, wandb, …")] = None,
    columns: Annotated[
        list[str] | None, Option("--column", help="Which column is which: text=review. Repeatable.")
    ] = None,
    text_column: Annotated[str | None, Option(help="The column with the text.")] = None,
    label_column: Annotated[str | None, Option(help="The column with the label.")] = None,
    skip_bad_rows: Annotated[
        bool | None, Option("--skip-bad-rows", help="Go on without broken rows.")
    ] = None,
    clean: Annotated[
        str | None, Option(help="What to mend: encoding,empty,duplicates,overlap, or some of them.")
    ] = None,
    augment: Annotated[
        str | None, Option(help="Change what is trained on, anew each epoch: typos,crop,hiss, …")
    ] = None,
    stream: Annotated[
        bool | None, Option("--stream", help="Read train in pieces, as it is trained on.")
    ] = None,
    train_rows: Annotated[
        int | None, Option(help="Train on so many rows at most, drawn with the seed.")
    ] = None,
    data_seed: Annotated[
        int | None, Option(help="Of splits that are made; --seed, if left out.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in --out.")] = False,
    json_: Annotated[
        bool, Option("--json", help="Print metrics as JSON, and no progress.")
    ] = False,
) -> None:
    from trimtab.tune.config import Config, parse, read

    flags = {key: value for key, value in locals().items() if key in Config.model_fields}
    given = {key: value for key, value in flags.items() if value is not None}
    for key in ("ranks", "method_arg", "recipe_arg", "task_arg", "columns"):
        if key in given:
            given[key] = dict(assignment(one, _FLAGS.get(key, key)) for one in given[key])
    values = {**(read(file) if file else {}), **given}
    where = str(file) if file else "trimtab tune"
    if resume:
        _resume(values, where, json_)
        return
    _run(parse(values, where), resume=False, json_=json_)


def _resume(values: dict[str, Any], where: str, json_: bool) -> None:
    """The saved configuration counts; what contradicts it is an error, not ignored."""
    from trimtab.tune.config import parse
    from trimtab.tune.folder import Run

    if "out" not in values:
        raise InputError("--resume needs --out: the folder of the run to go on with")
    saved = Run(Path(str(values["out"]))).config()
    asked = parse({**saved.model_dump(), **values}, where)
    for key in values:
        wanted, there = getattr(asked, key), getattr(saved, key)
        if key == "method" and wanted == "auto" and saved.budget:  # its plan is made
            continue
        if key == "plan" and wanted != there:
            raise InputError(
                f"--plan {values[key]} is not the plan of the run in {asked.out}, whose "
                "config.yaml holds it: leave it out, or begin a new run"
            )
        if key == "train":  # the run has added its new head
            wanted = there if set(wanted or ()) <= set(there or ()) else wanted
        if key != "out" and wanted not in (None, "auto", there):
            raise InputError(
                f"--{key.replace('_', '-')} {values[key]} contradicts the run in {asked.out}, "
                f"which has {there}: leave it out, or begin a new run"
            )
    saved.out = asked.out
    _run(saved, resume=True, json_=json_)


def _run(config: Any, *, resume: bool, json_: bool) -> None:
    from trimtab.tune.folder import Run
    from trimtab.tune.run import tune as run

    over = resume and Run(Path(config.out)).over
    metrics = run(config, resume=resume, quiet=json_)
    if json_:
        print(json.dumps(metrics))
    else:
        if over:
            print(f"the run in {config.out} has come to its end: there is nothing left to do")
        from trimtab.cli.table import print_result

        print_result(metrics, Path(config.out))


def demo(
    out: Annotated[str, Option(help="The run's folder; made anew.")] = "runs/demo",
    method: Annotated[str, Option(help="A method: see trimtab methods.")] = "lora",
    seed: Annotated[int, Option(help="Everything random follows from it.")] = 0,
    json_: Annotated[
        bool, Option("--json", help="Print metrics as JSON, and no progress.")
    ] = False,
) -> None:
    """Adapt MiniLM to tell which package of the standard library a docstring documents."""
    import shutil
    import sys

    from trimtab.tune.config import parse
    from trimtab.tune.folder import Run

    run = Run(Path(out))
    if run.config_file.exists():
        if run.config().data != "docstrings":
            raise InputError(f"{out} holds a run on other data: choose another --out")
        shutil.rmtree(out)
    if not json_:
        print(_STORY.format(method=method), file=sys.stderr)
    fields = {"model": "minilm", "data": "docstrings", "out": out, "method": method, "seed": seed}
    _run(parse({**fields, **_DEMO}, "trimtab demo"), resume=False, json_=json_)


_DEMO = {"epochs": 2, "lr": 5e-4}
_STORY = """Which package of Python's standard library does a docstring document?
Model: MiniLM-L6, 22.7 million parameters, pre-trained.  Method: {method}.
Data: docstrings found in this Python, split by module, so that no file is on both sides.
"""
