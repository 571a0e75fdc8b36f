"""Metrics of rankings and of scores that rank.

What is ranked comes as the ranks, from 1, of the relevant items of each query: one rank where one
item is right (a pair's other half, the next item), a list where several are.

    recall at k     |{r ≤ k}| / m, of m relevant items
                    one way or the other, where pairs are asked for by either half
    hit rate at k   1 if any r ≤ k
    NDCG at k       Σ_{r ≤ k} 1 / log₂(r + 1)  /  Σ_{i = 1}^{min(m, k)} 1 / log₂(i + 1)
                    (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques",
                    2002, with gains of 0 or 1); scikit-learn
    MRR             mean of 1 / (the best rank)

All are means over queries; a query without relevant items is left out.

Of a binary decision: the area under the ROC curve, which is the chance that a positive scores above
a negative (Hanley and McNeil 1982), and average precision, Σ (Rₙ - Rₙ₋₁) Pₙ; scikit-learn. Without
positives, or for the area without negatives, they are undefined. Macro: the mean over the labels of
which it is defined, each of the examples where the label is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics.metric import (
    Chosen,
    Column,
    Metric,
    divide,
    library,
    mean_defined,
    mean_of_defined,
)


def ranks(prediction: Any) -> np.ndarray:
    """(m,), from 1; what was not found (None, NaN) comes after everything."""
    given = np.atleast_1d(np.asarray(prediction, dtype=float))
    given = np.where(np.isnan(given), np.inf, given)
    if (given < 1).any():
        raise InputError(f"ranks count from 1; there is a rank of {given.min():g}")
    return given


def recall_at(k: int) -> Metric:
    def each(prediction: Any, reference: Any) -> float:
        found = ranks(prediction)
        return float((found <= k).mean()) if len(found) else np.nan

    return mean_of_defined(
        f"recall_at_{k}", f"the share of relevant items among the first {k}", each
    )


def one_way(way: str) -> Callable[[int], Metric]:
    """Recall where the ranks of both ways are there, under their names."""

    def at(k: int) -> Metric:
        def each(prediction: Any, reference: Any) -> float:
            return float((ranks(prediction[way]) <= k).mean())

        told = f"from {way.replace('_', ' ')}: how often the right one is among the first {k}"
        return mean_of_defined(f"{way}_recall_at_{k}", told, each)

    return at


def hit_rate_at(k: int) -> Metric:
    def each(prediction: Any, reference: Any) -> float:
        found = ranks(prediction)
        return float((found <= k).any()) if len(found) else np.nan

    return mean_of_defined(
        f"hit_rate_at_{k}", f"the share of queries with a relevant item among the first {k}", each
    )


def ndcg_at(k: int) -> Metric:
    def each(prediction: Any, reference: Any) -> float:
        found = ranks(prediction)
        if not len(found):
            return np.nan
        ideal = np.arange(1, min(len(found), k) + 1)
        return float(_gain(found[found <= k]) / _gain(ideal))

    return mean_of_defined(
        f"ndcg_at_{k}",
        f"normalised discounted cumulative gain of the first {k} (scikit-learn)",
        each,
        compute=lambda predictions, references: _ndcg(predictions, k),
    )


def _gain(found: np.ndarray) -> float:
    return float((1 / np.log2(found + 1)).sum())


def _ndcg(predictions: Column, k: int) -> float:
    """By scikit-learn, which takes items in place of ranks: k places, then what came later."""
    queries = [found for found in map(ranks, predictions) if len(found)]
    if not queries:
        return np.nan
    relevant = np.zeros((len(queries), k + max(map(len, queries)) + 1))
    for row, found in zip(relevant, queries, strict=True):
        first = found[found <= k]
        row[first.astype(int) - 1] = 1
        row[k : k + len(found) - len(first)] = 1
    order = np.broadcast_to(-np.arange(relevant.shape[1], dtype=float), relevant.shape)
    return library("sklearn.metrics").ndcg_score(relevant, order, k=k, ignore_ties=True)


def reciprocal(prediction: Any, reference: Any) -> float:
    found = ranks(prediction)
    return float(1 / found.min()) if len(found) else np.nan


# Scores of a positive class


def roc_auc_of(positives: np.ndarray, negatives: np.ndarray) -> float:
    """From how many have each score, from the highest: the share of pairs in order, ties half."""
    above = np.cumsum(positives) - positives / 2
    return float(divide((negatives * above).sum(), positives.sum() * negatives.sum()))


def average_precision_of(positives: np.ndarray, negatives: np.ndarray) -> float:
    right, every = np.cumsum(positives), np.cumsum(positives + negatives)
    precision = np.where(every > 0, divide(right, every), 0.0)
    return float(divide((positives * precision).sum(), positives.sum()))


def macro_roc_auc(predictions: Column, references: Column) -> float:
    """Of rows with a score for each label, of which only those that are known (no NaN) count."""
    scores, known = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    areas = [
        _area(score[there], true[there])
        for score, true in zip(scores.T, known.T, strict=True)
        if (there := ~np.isnan(true)).any()
    ]
    return float(mean_defined(np.array([areas]))[0]) if areas else np.nan


def _area(scores: np.ndarray, true: np.ndarray) -> float:
    if not np.isfinite(scores).all() or true.all() or not true.any():
        return np.nan
    return library("sklearn.metrics").roc_auc_score(true, scores)


def _macro_prepared(predictions: Column, references: Column) -> Chosen:
    """Scores of each label are sorted once."""
    scores, known = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    each = [_prepared(*label) for label in zip(scores.T, known.T, strict=True)]
    return lambda drawn: float(mean_defined(np.array([[at(drawn) for at in each]]))[0])


def _prepared(scores: np.ndarray, known: np.ndarray) -> Chosen:
    distinct, places = np.unique(-scores, return_inverse=True)
    sides, broken = (known == 1, known == 0), ~np.isfinite(scores) & ~np.isnan(known)

    def at(drawn: np.ndarray) -> float:
        counts = (np.bincount(places[drawn[of[drawn]]], minlength=len(distinct)) for of in sides)
        return np.nan if broken[drawn].any() else roc_auc_of(*counts)

    return at


def _decision(
    name: str, of: Callable[[np.ndarray, np.ndarray], float], called: str, description: str
) -> Metric:
    def columns(predictions: Column, references: Column) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(predictions, dtype=float), np.asarray(references).astype(bool)

    def compute(predictions: Column, references: Column) -> float:
        scores, true = columns(predictions, references)
        both = name == "average_precision" or not true.all()
        if not np.isfinite(scores).all() or not true.any() or not both:
            return np.nan
        return getattr(library("sklearn.metrics"), called)(true, scores)

    def prepare(predictions: Column, references: Column) -> Chosen:
        """Scores are sorted once: a resample only draws some of them more often."""
        scores, true = columns(predictions, references)
        if not np.isfinite(scores).all():
            return lambda drawn: np.nan
        distinct, places = np.unique(-scores, return_inverse=True)

        def at(drawn: np.ndarray) -> float:
            positive = true[drawn]
            with_score = (places[drawn][which] for which in (positive, ~positive))
            return of(*(np.bincount(part, minlength=len(distinct)) for part in with_score))

        return at

    return Metric(name=name, description=description, compute=compute, prepare=prepare)


RANKING = (
    mean_of_defined("mrr", "mean reciprocal of the best rank", reciprocal),
    _decision("roc_auc", roc_auc_of, "roc_auc_score", "area under the ROC curve (scikit-learn)"),
    Metric(
        name="macro_roc_auc",
        description="mean over labels of the area under the ROC curve (scikit-learn)",
        compute=macro_roc_auc,
        prepare=_macro_prepared,
    ),
    _decision(
        "average_precision",
        average_precision_of,
        "average_precision_score",
        "mean precision at each positive (scikit-learn)",
    ),
)

AT = {
    "recall_at": recall_at,
    "hit_rate_at": hit_rate_at,
    "ndcg_at": ndcg_at,
    **{f"{way}_recall_at": one_way(way) for way in ("image_to_text", "text_to_image")},
}
