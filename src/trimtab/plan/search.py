"""Method and learning rate by successive halving. Jamieson and Talwalkar 2016, arXiv:1502.07943; Li
et al. 2018 (ASHA), arXiv:1810.05934.

    rung k: n₀ ηᵏ rows of train;   a trial goes on from rung k if it is among the best 1/η so far

A trial trains on a growing slice of the data, and is scored on the validation split. `train` is
what trains and scores; who calls says how, so that it runs here (Optuna) or on workers (Ray).
Finished trials are kept in a journal beside the plan, and are not run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError, TrimtabError

FACTOR = 3  # η
_SPREAD = math.sqrt(10)  # of a learning rate: above and below the method's own


@dataclass(frozen=True)
class Point:
    """What a trial tries."""

    method: str
    lr: float

    @property
    def name(self) -> str:
        return f"{self.method}-{self.lr:.3g}"


Train = Callable[[Point, int], float]
"""(point, rows of train) -> the validation metric, more of which is better."""


@dataclass(frozen=True)
class Trial:
    """A point, and its score on each slice that it came to."""

    point: Point
    scores: tuple[float, ...]

    @property
    def rank(self) -> tuple[int, float]:
        """A score on a larger slice counts before any on a smaller one."""
        return len(self.scores), self.scores[-1] if self.scores else -math.inf


def slices(rows: int, smallest: int) -> tuple[int, ...]:
    """Rows of the rungs: each η times the one before, the last all that there are."""
    found = [rows]
    while found[-1] // FACTOR >= smallest:
        found.append(found[-1] // FACTOR)
    return tuple(reversed(found))


def library(name: str, extra: str) -> Any:
    """A library of an extra, or an error that says how to have it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"this needs {name}, which is not installed: pip install 'trimtab[{extra}]'"
        ) from None


def by_optuna(
    train: Train,
    rates: dict[str, float],
    rungs: Sequence[int],
    count: int,
    folder: Path,
    seed: int,
    told: Callable[[str], None],
) -> list[Trial]:
    """Trials one after the other, in this process. Each method is tried at its own learning rate
    first; then Optuna's TPE draws. A search that was stopped goes on."""
    optuna = library("optuna", "plan")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal
    file = str(folder / "trials.log")
    lock = journal.JournalFileOpenLock(file)
    study = optuna.create_study(
        study_name="plan",
        storage=optuna.storages.JournalStorage(journal.JournalFileBackend(file, lock_obj=lock)),
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
    )
    _same(study, {"methods": sorted(rates), "rungs": list(rungs)}, folder)
    if not study.trials:
        for method in list(rates)[:count]:
            study.enqueue_trial({"method": method, "factor": 1.0})
    _again(optuna, study)
    # A sampler that begins anew under its seed would draw the same points once more.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))

    def objective(trial: Any) -> float:
        method = trial.suggest_categorical("method", list(rates))
        factor = trial.suggest_float("factor", 1 / _SPREAD, _SPREAD, log=True)
        point, score = Point(method, rates[method] * factor), -math.inf
        for rung, rows in enumerate(rungs, start=1):
            try:
                score = train(point, rows)
            except TrimtabError as error:  # a learning rate at which it diverges, say
                told(f"trial {trial.number + 1}: {point.name} on {rows:,} rows failed: {error}")
                raise optuna.TrialPruned from None
            trial.report(score, rung)
            told(f"trial {trial.number + 1}: {point.name} on {rows:,} rows: {score:.4f}")
            if rung < len(rungs) and trial.should_prune():
                raise optuna.TrialPruned
        return score

    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    left = count - len(study.get_trials(deepcopy=False, states=over))
    if left > 0:
        study.optimize(objective, n_trials=left)
    found = [_read(trial, rates) for trial in study.trials if trial.intermediate_values]
    return sorted(found, key=lambda one: one.rank, reverse=True)


def _same(study: Any, asked: dict[str, Any], folder: Path) -> None:
    """A journal of another search is not gone on with."""
    held = study.user_attrs.get("asked")
    if held is not None and held != asked:
        raise InputError(
            f"{folder} holds a search of other methods or slices ({held}): choose another --out, "
            "or remove it"
        )
    study.set_user_attr("asked", asked)


def _again(optuna: Any, study: Any) -> None:
    """What ran when the search was stopped is run again; its finished slices are on disk."""
    states = optuna.trial.TrialState
    again = list(study.user_attrs.get("again", ()))
    for trial in study.get_trials(states=(states.RUNNING, states.FAIL)):
        if trial.params and trial.number not in again:
            study.enqueue_trial(trial.params)
            again.append(trial.number)
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
    study.set_user_attr("again", again)


def _read(trial: Any, rates: dict[str, float]) -> Trial:
    method = trial.params["method"]
    point = Point(method, rates[method] * trial.params["factor"])
    scores = sorted(trial.intermediate_values.items())
    return Trial(point, tuple(score for _, score in scores))


def points(rates: dict[str, float], count: int, seed: int) -> list[Point]:
    """Drawn beforehand, for engines that try several at once: the methods in turn, at their own
    learning rates first, then at others."""
    import random

    draw, found = random.Random(seed), []
    for index in range(count):
        method = list(rates)[index % len(rates)]
        first = index < len(rates)
        factor = 1.0 if first else _SPREAD ** draw.uniform(-1, 1)
        found.append(Point(method, rates[method] * factor))
    return found
