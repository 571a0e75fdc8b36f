"""The same search on Ray's workers: this machine's, or those of a cluster that is joined.

    RAY_ADDRESS=auto trimtab plan --search --engine ray …

Asynchronous halving (ASHA, arXiv:1810.05934) decides who goes on while others still run. `train`
is called on a worker: it must find model and data there, and write where all workers read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.errors import TrimtabError
from trimtab.plan.search import FACTOR, Point, Train, Trial, library, points


def by_ray(
    train: Train,
    rates: dict[str, float],
    rungs: Sequence[int],
    count: int,
    folder: Path,
    seed: int,
    told: Callable[[str], None],
    workers: int,
) -> list[Trial]:
    """As many trials at once as there are workers. A search that was stopped goes on: slices that
    are over lie in the folder, and give their score at once."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray, tune = library("ray", "ray"), library("ray.tune", "ray")
    schedulers = library("ray.tune.schedulers", "ray")
    drawn = points(rates, count, seed)
    begun = not ray.is_initialized()
    if begun:
        # A cluster's address comes from RAY_ADDRESS; here there is one worker a trial.
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
    try:
        results = tune.Tuner(
            tune.with_resources(functools.partial(_climb, train, tuple(rungs)), {"cpu": 1}),
            param_space={"point": tune.grid_search([vars(point) for point in drawn])},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                max_concurrent_trials=workers,
                scheduler=schedulers.ASHAScheduler(
                    max_t=len(rungs), grace_period=1, reduction_factor=FACTOR
                ),
            ),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(folder.resolve()), verbose=0, log_to_file=False
            ),
        ).fit()
    finally:
        if begun:
            ray.shutdown()
    found = [_read(result) for result in results if result.metrics and "scores" in result.metrics]
    if not found:
        first = next((result.error for result in results if result.error), None)
        raise TrimtabError(f"every trial failed on Ray's workers, first with: {first}")
    for trial in found:
        scores = ", ".join(
            f"{rows:,} rows {s:.4f}" for rows, s in zip(rungs, trial.scores, strict=False)
        )
        told(f"{trial.point.name}: {scores}")
    return sorted(found, key=lambda one: one.rank, reverse=True)


def _climb(train: Train, rungs: tuple[int, ...], config: dict[str, Any]) -> None:
    """On a worker: a trial from slice to slice, for as long as it is let."""
    from ray import tune

    point, scores = Point(**config["point"]), list[float]()
    for rows in rungs:
        scores.append(train(point, rows))
        tune.report({"score": scores[-1], "scores": list(scores), "point": config["point"]})


def _read(result: Any) -> Trial:
    return Trial(Point(**result.metrics["point"]), tuple(result.metrics["scores"]))
