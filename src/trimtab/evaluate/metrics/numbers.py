"""Metrics of numbers: correlations and errors, losses and margins, forecasts.

    Pearson         (n Σxy - Σx Σy) / √((n Σx² - (Σx)²) (n Σy² - (Σy)²))
    Spearman        the same of ranks (ties share theirs), which a resample changes: no sums
    RMSE            √(1/n Σ (x - y)²)
    MAE             1/n Σ |x - y|
    perplexity      exp(Σᵢ nllᵢ / Σᵢ tokensᵢ), nllᵢ in nats, summed over the tokens of example i
    MASE            mean over series of  (mean over steps of |forecast - actual|) / scale,
                    scale = mean over the history of |y_t - y_{t-m}|, the error of repeating the
                    last season of m steps (Hyndman and Koehler, "Another look at measures of
                    forecast accuracy", 2006; over series as in the M4 competition)
    reward margin   mean of β log π(y₊)/π₀(y₊) - β log π(y₋)/π₀(y₋), y₊ the preferred answer
                    (Rafailov et al., "Direct Preference Optimization", 2023), as the task gives it

Correlations: scipy. RMSE and MAE: scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics.metric import (
    Chosen,
    Column,
    Metric,
    divide,
    library,
    mean_of_defined,
    ratio,
)

# n Σx² - (Σx)² of equal numbers, relative to n Σx²: what rounding leaves of zero.
_ROUNDING = 1e-13


def pair(predictions: Column, references: Column) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)


def _constant(x: np.ndarray) -> bool:
    return bool((x == x[0]).all())


def _correlation(name: str, x: np.ndarray, y: np.ndarray) -> float:
    if not np.isfinite([x, y]).all() or _constant(x) or _constant(y):
        return np.nan
    return getattr(library("scipy.stats"), name)(x, y).statistic


def moments(predictions: Column, references: Column) -> np.ndarray:
    """(n, 6): 1, x, y, x², y², xy, from the medians, since moments about zero of numbers far from
    it lose their digits."""
    x, y = (column - np.median(column) for column in pair(predictions, references))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def pearson_of(totals: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(totals, -1, 0)
    of_x, of_y = (
        np.where(n * ss - s * s > _ROUNDING * n * ss, n * ss - s * s, 0.0)
        for s, ss in ((x, xx), (y, yy))
    )
    return np.clip(divide(n * xy - x * y, np.sqrt(of_x) * np.sqrt(of_y)), -1, 1)


def _spearman_prepared(predictions: Column, references: Column) -> Chosen:
    x, y = pair(predictions, references)
    return lambda drawn: _correlation("spearmanr", x[drawn], y[drawn])


def squared_error(prediction: float, reference: float) -> float:
    return (prediction - reference) ** 2


def absolute_error(prediction: float, reference: float) -> float:
    return abs(prediction - reference)


def square_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, 2): the squared error, 1."""
    x, y = pair(predictions, references)
    return np.stack([(x - y) ** 2, np.ones_like(x)], axis=-1)


def _error(name: str, predictions: Column, references: Column) -> float:
    x, y = pair(predictions, references)
    if not np.isfinite([x, y]).all():
        return np.nan
    return getattr(library("sklearn.metrics"), name)(y, x)


def as_given(prediction: float, reference: Any) -> float:
    return float(prediction)


def margin(prediction: Any, of: int = 0) -> float:
    """Of rewards, or of rewards and of log-likelihoods."""
    return float(np.atleast_1d(prediction)[of])


def above(margin: float) -> float:
    """A tie counts half."""
    return np.nan if np.isnan(margin) else float(np.heaviside(margin, 0.5))


# Language models


def token_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, 2): nll, tokens."""
    return np.asarray(predictions, dtype=float).reshape(-1, 2)


def perplexity_of(totals: np.ndarray) -> np.ndarray:
    return np.exp(ratio(totals))


def perplexity_of_one(prediction: tuple[float, float], reference: Any) -> float:
    return float(perplexity_of(np.asarray(prediction, dtype=float)))


# Forecasts


def naive_scale(history: Column, season: int = 1) -> float:
    """The mean error of forecasting, within the history, the value of a season before; NaN where
    the history is no longer than a season."""
    y = np.asarray(history, dtype=float)
    steps = np.abs(y[season:] - y[:-season])
    steps = steps[~np.isnan(steps)]
    return float(steps.mean()) if len(steps) else np.nan


def mase_of_one(prediction: Any, reference: tuple[Any, float]) -> float:
    """NaN, and so left out, for a series whose history never changes or that has no value to
    compare with. Missing values (NaN) of the actual series are not counted."""
    actual, scale = np.asarray(reference[0], dtype=float), float(reference[1])
    forecast = np.asarray(prediction, dtype=float)
    if forecast.shape != actual.shape:
        raise InputError(
            f"a forecast of {forecast.shape} steps does not fit the {actual.shape} actual ones"
        )
    there = ~np.isnan(actual)
    if not there.any() or not scale > 0:
        return np.nan
    error = float(np.abs(forecast - actual)[there].mean()) / scale
    return error if np.isfinite(error) else np.inf  # a forecast of NaN is no missing value


def forecast_error(prediction: Any, reference: tuple[Any, float]) -> float:
    """The same, in the series' own units."""
    return mase_of_one(prediction, (reference[0], 1.0))


NUMBERS = (
    Metric(
        name="pearson",
        description="Pearson's linear correlation, -1 to 1 (scipy)",
        compute=lambda p, r: _correlation("pearsonr", *pair(p, r)),
        each=lambda p, r: -absolute_error(p, r),
        sums=moments,
        of=pearson_of,
        unit="",
    ),
    Metric(
        name="spearman",
        description="Spearman's correlation of ranks, -1 to 1 (scipy)",
        compute=lambda p, r: _correlation("spearmanr", *pair(p, r)),
        each=lambda p, r: -absolute_error(p, r),
        prepare=_spearman_prepared,
        unit="",
        resamples=1000,
    ),
    Metric(
        name="rmse",
        description="root of the mean squared error (scikit-learn)",
        compute=lambda p, r: _error("root_mean_squared_error", p, r),
        each=squared_error,
        sums=square_sums,
        of=lambda totals: np.sqrt(ratio(totals)),
        higher=False,
        unit="",
    ),
    Metric(
        name="mae",
        description="mean absolute error (scikit-learn)",
        compute=lambda p, r: _error("mean_absolute_error", p, r),
        each=absolute_error,
        mean=True,
        higher=False,
        unit="",
    ),
    Metric(
        name="perplexity",
        description="exp of the mean negative log-likelihood of a token",
        compute=lambda p, r: float(perplexity_of(token_sums(p, r).sum(0))),
        each=perplexity_of_one,
        sums=token_sums,
        of=perplexity_of,
        higher=False,
        unit="",
    ),
    mean_of_defined(
        "mase",
        "mean absolute error in units of the naive forecast's (Hyndman and Koehler 2006)",
        mase_of_one,
        higher=False,
        unit="",
    ),
    mean_of_defined(
        "forecast_mae",
        "mean absolute error of forecasts, in the series' own units",
        forecast_error,
        higher=False,
        unit="",
    ),
    Metric(
        name="reward_margin",
        description="mean reward of the preferred answer over the other, of DPO the implicit one",
        each=lambda p, r: margin(p),
        mean=True,
        unit="",
    ),
    Metric(
        name="reward_accuracy",
        description="the share of pairs whose preferred answer has the higher reward; ties half",
        each=lambda p, r: above(margin(p)),
        mean=True,
    ),
    Metric(
        name="likelihood_accuracy",
        description="the share of pairs whose preferred answer is the more likely one; ties half",
        each=lambda p, r: above(margin(p, 1)),
        mean=True,
    ),
    Metric(
        name="denoising_loss",
        description="mean error of the predicted noise (Ho et al., DDPM, 2020)",
        each=as_given,
        mean=True,
        higher=False,
        unit="",
    ),
    Metric(
        name="action_error",
        description="mean squared error of a policy's actions, over a trajectory's steps",
        each=lambda p, r: margin(p),
        mean=True,
        higher=False,
        unit="",
    ),
    Metric(
        name="episode_return",
        description="mean of what a policy gains in an episode of the simulator",
        each=lambda p, r: margin(p, 1),
        mean=True,
        unit="",
    ),
)
