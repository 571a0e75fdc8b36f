"""Calibration: whether a model that says 80 % is right in 80 of a hundred. Guo et al., "On
Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.

    expected calibration error    ECE = Σ_b |Σ_{i ∈ b} (rightᵢ - confᵢ)| / n
    Brier score                   1/n Σᵢ Σ_k (p_ik - y_ik)²
    temperature                   p = softmax(z / T),   T = argmin_T of the validation's likelihood

conf is the largest probability, b one of 15 bins of equal width. Both are sums over the examples,
and are resampled as such. ECE of few examples is above zero by chance alone, even of a perfect
forecaster: compare two models, on the same rows. The temperature changes no answer; it is told as
an advice, with what it does to the evaluated rows, on which it was not fitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.judged import ADAPTED, Judged, logits_of, places, probabilities, softmax
from trimtab.evaluate.metrics.metric import Column, Metric, difference, divide, interval, library

BINS = 15
_COLDEST, _HOTTEST = -3.0, 3.0  # of log T


def bins(confidence: np.ndarray) -> np.ndarray:
    """(n,): the bin of each, from 0; 1.0 is in the last."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def ece_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, bins + 1): in its bin, by how much each example was surer than right; and one."""
    p, true = np.stack(list(predictions)), np.asarray(references)
    confidence = p.max(-1)
    table = np.zeros((len(p), BINS + 1))
    table[np.arange(len(p)), bins(confidence)] = confidence - (p.argmax(-1) == true)
    table[:, -1] = 1.0
    return table


def ece_of(totals: np.ndarray) -> np.ndarray:
    return divide(np.abs(totals[..., :-1]).sum(-1), totals[..., -1])


def _brier(p: np.ndarray, true: Any) -> float:
    return float(((p - np.eye(len(p))[true]) ** 2).sum())


ECE = Metric(
    name="ece",
    description="expected calibration error, 15 bins",
    compute=lambda p, y: float(ece_of(ece_sums(p, y).sum(0))),
    sums=ece_sums,
    of=ece_of,
    higher=False,
)
BRIER = Metric(
    name="brier",
    description="mean squared error of the probabilities",
    each=_brier,
    mean=True,
    higher=False,
)


def measure(judged: Judged, held_out: Judged | None) -> dict[str, Any]:
    """ECE, Brier score and reliability of both models, the paired change, and the temperature that
    `held_out`, the run's validation split, advises."""
    given = probabilities(judged, "calibration")
    true = places(judged.session.labels, judged.references).tolist()
    return {
        "rows": list(judged.pair),
        "bins": BINS,
        "metrics": {m.name: _compared(m, given, true, judged) for m in (ECE, BRIER)},
        "reliability": {row: reliability(p, true) for row, p in given.items()},
        "temperature": None
        if held_out is None
        else {row: _advice(judged, held_out, row, true) for row in judged.pair},
    }


def _compared(
    metric: Metric, given: dict[str, np.ndarray], true: list[int], judged: Judged
) -> dict[str, Any]:
    seed = judged.session.config.seed
    told = {row: interval(metric, list(p), true, seed=seed) for row, p in given.items()}
    one, other = list(given[ADAPTED]), list(given[judged.against])
    change = difference(metric, one, other, true, seed=seed)
    return {row: found.as_dict() for row, found in {**told, "change": change}.items()}


def reliability(p: np.ndarray, true: Column) -> list[dict[str, Any]]:
    """For every bin that has examples: how many, how sure, how often right, with its interval."""
    confidence, right = p.max(-1), (p.argmax(-1) == np.asarray(true)).astype(float)
    which, rows = bins(confidence), []
    for b in np.unique(which):
        inside = which == b
        rows.append(
            {
                "from": b / BINS,
                "to": (b + 1) / BINS,
                "confidence": float(confidence[inside].mean()),
                "accuracy": _wilson(right[inside]).as_dict(),
            }
        )
    return rows


def _wilson(right: np.ndarray) -> Interval:
    """A share with Wilson's 95 % interval, which stays within 0 and 1 where examples are few."""
    n, share, z = len(right), float(right.mean()), 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, float(max(0.0, middle - reach)), float(min(1.0, middle + reach)), n)


def fit_temperature(z: np.ndarray, true: np.ndarray) -> float:
    """T that makes the labels likeliest, between e⁻³ and e³."""
    logsumexp = library("scipy.special").logsumexp
    minimize = library("scipy.optimize").minimize_scalar

    def surprise(log_t: float) -> float:
        scaled = z * np.exp(-log_t)
        return float((logsumexp(scaled, axis=-1) - scaled[np.arange(len(z)), true]).mean())

    found = minimize(surprise, bounds=(_COLDEST, _HOTTEST), method="bounded")
    return float(np.exp(found.x))


def _advice(judged: Judged, held_out: Judged, row: str, true: list[int]) -> dict[str, Any]:
    seed, labels = judged.session.config.seed, judged.session.labels
    known = places(labels, held_out.references)
    t = fit_temperature(logits_of(held_out, row, "calibration"), known)
    z = logits_of(judged, row, "calibration")
    cooled, raw = list(softmax(z / t)), list(softmax(z))
    return {
        "value": t,
        "ece": interval(ECE, cooled, true, seed=seed).as_dict(),
        "change": difference(ECE, cooled, raw, true, seed=seed).as_dict(),
        "fitted_on": len(known),
    }
