"""`plan --search`: each trial is a run of `tune` on a slice of train, in a folder of its own."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.core import registry
from trimtab.core.errors import InputError
from trimtab.evaluate.metrics import METRICS
from trimtab.plan import Plan
from trimtab.plan.search import Point, by_optuna, slices
from trimtab.store.files import read_json, write_json
from trimtab.tune.config import Config, parse
from trimtab.tune.folder import Run
from trimtab.tune.phases import QUIET, Phases
from trimtab.tune.planning import Request, propose
from trimtab.tune.session import read_whole

_ASKED = "search.json"
_SMALLEST = 128  # rows of the first slice, where there are more


def search(
    config: Config,
    request: Request,
    *,
    folder: Path,
    trials: int = 9,
    engine: str = "optuna",
    workers: int = 2,
    smallest: int = _SMALLEST,
    phases: Phases = QUIET,
) -> Plan:
    """The plan of the method, and with the learning rate, that came out best on validation.

    Each method has a plan of its own under the budget. Trials lie in `folder`.

    Raises:
        InputError: fewer trials than methods; a folder with another search; no Optuna, or no Ray.
    """
    if trials < len(request.methods):
        raise InputError(
            f"--trials {trials} is fewer than the {len(request.methods)} methods to try"
        )
    _same_search(folder, config, request)
    plans = {name: _planned(config, request, name, phases) for name in request.methods}
    rows = len(read_whole(config).train)
    rungs = slices(min(rows, config.train_rows or rows), smallest)
    values = {**config.model_dump(exclude_unset=True), "train_rows": None}
    train = functools.partial(
        score, values, {name: plan.content() for name, plan in plans.items()}, str(folder)
    )
    rates = {name: registry.lookup(name).learning_rate for name in plans}
    if engine == "ray":
        from trimtab.plan.ray_search import by_ray

        found = by_ray(train, rates, rungs, trials, folder, config.seed, phases.say, workers)
    else:
        found = by_optuna(train, rates, rungs, trials, folder, config.seed, phases.say)
    if not found:
        raise InputError(f"no trial came to an end: see {folder}")
    best = found[0]
    sign = 1 if METRICS[config.build_task().metric].higher else -1
    note = (
        f"best of {len(found)} trials of {', '.join(plans)} on up to {rungs[-1]:,} rows: "
        f"{best.point.name}, validation {sign * best.scores[-1]:.4f}"
    )
    return replace(plans[best.point.method], lr=float(f"{best.point.lr:.4g}"), notes=(note,))


def _same_search(folder: Path, config: Config, request: Request) -> None:
    """What lies in the folder are trials of the same work under the same budget."""
    fields = config.model_dump(exclude={"method", "out"}, mode="json")
    asked = {**fields, "budget": request.budget.text, "estimator": request.estimator,
             "examples": request.examples, "most": request.most}  # fmt: skip
    path = folder / _ASKED
    own = Config(**{name: fields[name] for name in ("model", "data")}, out=config.out)
    before = own.model_dump(exclude={"method", "out"}, mode="json")  # fields that came since
    there = {**before, **read_json(path)} if path.exists() else asked
    for key, value in asked.items():
        if there.get(key) != value:
            raise InputError(
                f"{folder} holds a search with {key} {there.get(key)}, and this one has {value}: "
                "choose another --out, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _planned(config: Config, request: Request, name: str, phases: Phases) -> Plan:
    phases.say(f"planning {name}")
    own = config.model_copy(update={"method": name})
    return propose(own, replace(request, methods=(name,)), phases)


def score(
    values: dict[str, Any], plans: dict[str, Any], folder: str, point: Point, rows: int
) -> float:
    """The watched metric on validation of a run with this plan and learning rate, more is better. A
    run that is over is only read; one that was stopped goes on."""
    from trimtab.tune.run import tune

    run = Run(Path(folder) / f"{point.name}-{rows}")
    plan = plans[point.method]
    config = parse(
        {
            **values,
            "method": point.method,
            "method_arg": next(iter(plan["sites"])).get("with", {}) if _alone(plan) else {},
            "plan": plan,
            "lr": point.lr,
            "train_rows": rows,
            "out": str(run.path),
        },
        "a trial",
    )
    metrics = tune(config, resume=run.config_file.exists(), quiet=True)
    value = metrics["validation"]["value"]
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if metrics["higher_is_better"] else -value


def _alone(plan: dict[str, Any]) -> bool:
    return len(plan["sites"]) == 1 and plan["sites"][0]["site"] == "model"
