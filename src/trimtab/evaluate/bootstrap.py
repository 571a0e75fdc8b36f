"""How sure a number is: 95 % percentile bootstrap intervals over the test examples.

Draw n examples with replacement, compute the metric again, repeat; the interval runs from the 2.5th
to the 97.5th percentile of what came out. For two models the *difference* is computed on the same
drawn examples, because examples that are hard for one are hard for the other, and that shared luck
cancels (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

The interval knows nothing of what the sample never showed: a model that is right on every example
gets [1, 1]. At most one resample of the examples is held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.core.errors import InputError

Metric = Callable[[np.ndarray, np.ndarray], float]
Column = Sequence[Any] | np.ndarray

LEVEL = 0.95
# With this few distinct scores (right or wrong: two), drawing how often each occurs beats drawing
# examples: 100,000 of them take milliseconds rather than seconds.
FEW_DISTINCT = 64


@dataclass(frozen=True)
class Interval:
    """A metric on `n` examples, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float
    n: int

    @property
    def includes_zero(self) -> bool:
        """Whether, read as a difference, the two sides cannot be told apart."""
        return not (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN: an undefined number becomes null."""
        bounds = {"value": self.value, "low": self.low, "high": self.high}
        return {k: v if math.isfinite(v) else None for k, v in bounds.items()} | {"n": self.n}


def interval(
    metric: Metric, predictions: Column, labels: Column, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The interval of `metric(predictions, labels)`, for any metric.

    A resample on which the metric is undefined (NaN) is left out. For a mean over examples, such
    as accuracy, `mean_interval` gives the same interval faster.
    """
    predictions, labels = _columns(predictions=predictions, labels=labels)

    def score(chosen: slice | np.ndarray) -> float:
        return metric(predictions[chosen], labels[chosen])

    return _bootstrap(score, len(labels), resamples, seed)


def paired(
    metric: Metric,
    predictions_a: Column,
    predictions_b: Column,
    labels: Column,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The interval of metric(a) - metric(b), both computed on the same drawn examples."""
    a, b, labels = _columns(predictions_a=predictions_a, predictions_b=predictions_b, labels=labels)

    def score(chosen: slice | np.ndarray) -> float:
        return metric(a[chosen], labels[chosen]) - metric(b[chosen], labels[chosen])

    return _bootstrap(score, len(labels), resamples, seed)


def mean_interval(scores: Column, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The interval of the mean of one score per example: accuracy, from right (1) or wrong (0)."""
    (scores,) = _columns(scores=scores)
    return _mean(_numbers(scores, "scores"), resamples, seed)


def paired_mean(
    scores_a: Column, scores_b: Column, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The interval of mean(a) - mean(b), from the scores of two models on the same examples."""
    a, b = _columns(scores_a=scores_a, scores_b=scores_b)
    return _mean(_numbers(a, "scores_a") - _numbers(b, "scores_b"), resamples, seed)


def _bootstrap(
    score: Callable[[slice | np.ndarray], float], n: int, resamples: int, seed: int
) -> Interval:
    _check_resamples(resamples)
    rng = np.random.default_rng(seed)
    drawn = np.array([score(rng.integers(n, size=n)) for _ in range(resamples)], dtype=float)
    return _percentiles(float(score(slice(None))), drawn, n)


def _mean(scores: np.ndarray, resamples: int, seed: int) -> Interval:
    _check_resamples(resamples)
    rng, n = np.random.default_rng(seed), len(scores)
    values, counts = np.unique(scores, return_counts=True)
    if len(values) > FEW_DISTINCT:
        drawn = np.array([scores[rng.integers(n, size=n)].mean() for _ in range(resamples)])
        return _percentiles(float(scores.mean()), drawn, n)
    drawn = rng.multinomial(n, counts / n, size=resamples) @ values / n
    return _percentiles(float(counts @ values / n), drawn, n)


def _percentiles(value: float, drawn: np.ndarray, n: int) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return Interval(value, math.nan, math.nan, n)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def _columns(**given: Column) -> list[np.ndarray]:
    """Every column as an array with one entry per example; refuses none, or unequal numbers."""
    lengths = {name: len(column) for name, column in given.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length:,}" for name, length in lengths.items())
        raise InputError(
            f"a bootstrap needs one entry per example in every column: {found}. "
            "Pass predictions and labels of the same examples, in the same order."
        )
    if not all(lengths.values()):
        raise InputError(
            f"a bootstrap needs at least one example, found none in {' and '.join(lengths)}. "
            "Check that the split has rows."
        )
    return [_column(column) for column in given.values()]


def _column(column: Column) -> np.ndarray:
    try:
        return np.asarray(column)
    except ValueError:  # sentences of unequal length make no rectangle: one object per example
        boxed = np.empty(len(column), dtype=object)
        for i, entry in enumerate(column):
            boxed[i] = entry
        return boxed


def _numbers(scores: np.ndarray, name: str) -> np.ndarray:
    if scores.ndim != 1 or scores.dtype.kind not in "biuf":
        raise InputError(
            f"{name} must be one number per example, found an array of shape {scores.shape} and "
            f"type {scores.dtype}. For another metric use `interval` or `paired`."
        )
    undefined = int((~np.isfinite(scores)).sum())
    if undefined:
        raise InputError(
            f"{undefined:,} of {len(scores):,} {name} are NaN or infinite, so their mean is not "
            "defined. Leave these examples out, or score them."
        )
    return scores.astype(float)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, found {resamples}; 2000 is usual.")
