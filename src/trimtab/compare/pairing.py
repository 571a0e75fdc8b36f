"""Several seeds of one method, and two methods, on the same test examples.

    mean over seeds s of M(a_s)   -   mean over seeds s of M(b_s)

resampled over examples, the same ones drawn for every run. What seeds differ in is told beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.evaluate import bootstrap
from trimtab.evaluate.bootstrap import Interval, mean_interval, paired_mean
from trimtab.evaluate.metrics import Metric, difference, interval

Runs = Sequence[Sequence[Any]]  # the answers of each seed's run


def over_seeds(metric: Metric, runs: Runs, references: Sequence[Any], seed: int) -> Interval:
    """The mean of the metric over runs, with its interval over examples."""
    if len(runs) == 1:
        return interval(metric, runs[0], references, seed=seed)
    if metric.mean:
        return mean_interval(_scores(metric, runs, references), seed=seed)
    return _drawn(metric, [(1.0, runs)], references, seed)


def minus(metric: Metric, one: Runs, other: Runs, references: Sequence[Any], seed: int) -> Interval:
    """The mean of the metric over the runs of `one`, less that over the runs of `other`."""
    if len(one) == len(other) == 1:
        return difference(metric, one[0], other[0], references, seed=seed)
    if metric.mean:
        scores = (_scores(metric, runs, references) for runs in (one, other))
        return paired_mean(*scores, seed=seed)
    return _drawn(metric, [(1.0, one), (-1.0, other)], references, seed)


def _scores(metric: Metric, runs: Runs, references: Sequence[Any]) -> np.ndarray:
    return np.mean([metric.scores(answers, references) for answers in runs], axis=0)


def _drawn(
    metric: Metric, sides: Sequence[tuple[float, Runs]], references: Sequence[Any], seed: int
) -> Interval:
    at = [
        (sign / len(runs), metric.chosen(answers, references))
        for sign, runs in sides
        for answers in runs
    ]
    value = sum(
        sign / len(runs) * metric.value(answers, references)
        for sign, runs in sides
        for answers in runs
    )
    places = np.arange(len(references))
    found = bootstrap.interval(
        lambda drawn, _: sum(weight * of(drawn) for weight, of in at),
        places,
        places,
        resamples=metric.resamples,
        seed=seed,
    )
    return replace(found, value=float(value))
