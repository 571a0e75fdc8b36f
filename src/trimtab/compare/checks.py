"""What is wrong with a comparison, told before anything of it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.choose import choose
from trimtab.compare.request import Request
from trimtab.core import registry
from trimtab.core.errors import InputError, TrimtabError
from trimtab.evaluate import forgetting
from trimtab.tune import demands, products
from trimtab.tune.config import Config, parse
from trimtab.tune.phases import Phases
from trimtab.tune.run import trained_whole
from trimtab.tune.session import Session, open_session, read_whole


def refuse(request: Request, phases: Phases) -> list[str]:
    """Raises `InputError` where a method, base, task, or the data cannot be used; returns notes.

    The data are read and every base is opened once, and each method's places are looked for in it.
    """
    out = Path(request.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file, not a folder")
    if request.probe is not None:
        forgetting.lines(request.probe)
    configs = {
        (m, name): _config(request, m, name) for m in request.models for name in request.every
    }
    for config in configs.values():
        demands.refuse(config)
        products.refuse(config)
    with phases.doing(f"reading {request.data}"):
        splits = read_whole(next(iter(configs.values())))
    if not len(splits.test):
        raise InputError(f"{request.data} has no test rows to compare on")
    _refuse_sizes(request, len(splits.train))
    task = next(iter(configs.values())).build_task()
    for model in request.models:
        labels = task.order(model, task.labels(splits.train))
        sessions: dict[Any, Session] = {}
        for method in request.every:
            with phases.doing(f"looking whether {method} runs on {model}"):
                _refuse_method(configs[model, method], labels, sessions)
    return list(splits.notes)


def _config(request: Request, model: str, method: str) -> Config:
    fields = request.config(model, method, str(Path(request.out) / "runs"))
    return parse(fields, "trimtab compare")


def _refuse_sizes(request: Request, rows: int) -> None:
    for size in request.sizes:
        if size is not None and size > rows:
            raise InputError(
                f"--sizes {size}: there are {rows:,} rows of train; leave it out, or say all"
            )


def _refuse_method(config: Config, labels: list[str], sessions: dict[Any, Session]) -> None:
    """A base in codes is another one than the base in numbers: each form is opened once."""
    form = registry.lookup(config.method).base
    if form not in sessions:
        sessions[form] = open_session(config.model_copy(), labels)
    session = sessions[form]
    if config.selects:
        return
    session.config = config
    try:
        choose(session.model, config.build_method(), config.target, trained_whole(session))
    except TrimtabError as error:
        raise InputError(f"{config.method} cannot run on {config.model}: {error}") from None
