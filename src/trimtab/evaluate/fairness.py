"""Fairness between groups: how often each is chosen, how often rightly, and the gaps between them.

Of a group g, with ŷ = 1 where the model answers the positive label and p its probability:

    selection rate         P(ŷ = 1 | g)
    true positive rate     P(ŷ = 1 | y = 1, g)
    false positive rate    P(ŷ = 1 | y = 0, g)
    calibration            E[p | g] - P(y = 1 | g): above zero, the model expects too many
    gap                    the largest less the smallest of the groups; of the selection rate it is
                           the demographic parity difference, and the larger one of the true and
                           false positive rates is the equalised odds difference (Hardt, Price and
                           Srebro 2016, arXiv:1610.02413)

The numbers are fairlearn's (`MetricFrame`). Each is a quotient of sums over examples, by which it
is resampled: both models on the same drawn examples, so that a widened gap is told from luck. A
group with fewer than 30 examples that a rate is over is shown, and has no part in the gap, which
one of three examples would decide.

That gaps are small makes no model fair: rates cannot all be alike where groups differ in how many
are positive (Kleinberg, Mullainathan and Raghavan 2016, arXiv:1609.05807).
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from trimtab.core.errors import InputError, nearest
from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.judged import ADAPTED, Judged, places, probabilities
from trimtab.evaluate.metrics.metric import divide, quiet
from trimtab.evaluate.slices import FEW, Group, column, groups

RATES = ("selection_rate", "true_positive_rate", "false_positive_rate", "calibration")
GAPS = (*RATES, "equalised_odds")
_OVER = {"selection_rate": 0, "true_positive_rate": 1, "false_positive_rate": 2, "calibration": 0}
RESAMPLES = 1000


def by_group(judged: Judged, name: str, positive: str | None) -> dict[str, Any]:
    """The rates of each group of a column for both models, their gaps, and what has widened."""
    label = _positive(judged.session.labels, positive)
    given = probabilities(judged, "fairness")
    labels = judged.session.labels
    found = groups(column(judged, name))
    true = places(labels, judged.references) == label
    chosen = {row: p.argmax(-1) == label for row, p in given.items()}
    chance = {row: p[:, label] for row, p in given.items()}
    values = {row: rates(found, true, chosen[row], chance[row]) for row in judged.pair}
    drawn = _resampled(found, true, chosen, chance, judged.session.config.seed)
    enough = sizes(found, true) >= FEW
    gap = {row: gaps(values[row], enough) for row in judged.pair}
    gap_drawn = {row: gaps(drawn[row], enough) for row in judged.pair}
    return {
        "column": name,
        "positive": labels[label],
        "few": FEW,
        "rows": list(judged.pair),
        "groups": [
            _group(group, k, enough[:, k], values, drawn, judged.against)
            for k, group in enumerate(found)
        ],
        "gaps": {g: _gap(i, gap, gap_drawn, judged) for i, g in enumerate(GAPS)},
    }


def warnings(found: dict[str, Any]) -> list[str]:
    """The gaps that adaptation widened by more than chance would."""
    against = found["rows"][0]
    return [
        f"adaptation widened the gap of the {name.replace('_', ' ')} between the groups of "
        f"{found['column']}: {gap[against]['value']:.3f} with {against}, "
        f"{gap[ADAPTED]['value']:.3f} adapted, {gap['change']['value']:+.3f} "
        f"[{gap['change']['low']:+.3f}, {gap['change']['high']:+.3f}] paired"
        for name, gap in found["gaps"].items()
        if gap["widened"]
    ]


def _positive(labels: list[str], asked: str | None) -> int:
    if asked in labels:
        return labels.index(asked)
    if asked is None:
        known = ", ".join(map(repr, labels[:10]))
        raise InputError(f"fairness needs --positive: which label is the good one, of {known}")
    raise InputError(f"--positive {asked!r} is no label of this run; {nearest(asked, labels)}")


def rates(
    found: list[Group], true: np.ndarray, chosen: np.ndarray, chance: np.ndarray
) -> np.ndarray:
    """(rates, groups), by fairlearn; NaN where a rate is over no example."""
    try:
        metrics = importlib.import_module("fairlearn.metrics")
    except ModuleNotFoundError:
        raise InputError(
            "fairness is measured by fairlearn, which is not installed: "
            "pip install 'trimtab[fairness]'"
        ) from None

    which = np.empty(len(true), dtype=int)
    for k, group in enumerate(found):
        which[group.places] = k
    with quiet():
        by_answer = metrics.MetricFrame(
            metrics={name: getattr(metrics, name) for name in RATES[:3]},
            y_true=true.astype(int),
            y_pred=chosen.astype(int),
            sensitive_features=which,
        ).by_group
        by_chance = metrics.MetricFrame(
            metrics={"calibration": lambda y, p: np.mean(p) - np.mean(y)},
            y_true=true.astype(int),
            y_pred=chance,
            sensitive_features=which,
        ).by_group
    table = np.stack([*(by_answer[name] for name in RATES[:3]), by_chance["calibration"]])
    return np.where(sizes(found, true) > 0, table.astype(float), np.nan)


def sizes(found: list[Group], true: np.ndarray) -> np.ndarray:
    """(rates, groups): how many examples each rate is over."""
    table = [[len(g.places), true[g.places].sum(), (~true[g.places]).sum()] for g in found]
    return np.array(table).T[[_OVER[name] for name in RATES]]


def sums(
    found: list[Group], true: np.ndarray, chosen: np.ndarray, chance: np.ndarray
) -> np.ndarray:
    """(n, groups · 6): of each example, in its group, the terms that the rates are quotients of."""
    y, s = true.astype(float), chosen.astype(float)
    terms = np.stack([np.ones_like(y), y, s, y * s, (1 - y) * s, chance], axis=-1)
    table = np.zeros((len(y), len(found), terms.shape[-1]))
    for k, group in enumerate(found):
        table[group.places, k] = terms[group.places]
    return table.reshape(len(y), -1)


def rates_of(totals: np.ndarray) -> np.ndarray:
    """(…, groups · 6) totals -> (…, rates, groups)."""
    n, y, s, hits, alarms, p = np.moveaxis(totals.reshape(*totals.shape[:-1], -1, 6), -1, 0)
    found = divide(s, n), divide(hits, y), divide(alarms, n - y), divide(p - y, n)
    return np.stack(found, axis=-2)


def gaps(table: np.ndarray, enough: np.ndarray) -> np.ndarray:
    """(…, rates, groups) -> (…, gaps): the largest less the smallest of the groups that are large
    enough; NaN where there are no two of them."""
    seen = np.where(enough & ~np.isnan(table), table, -np.inf).max(-1)
    least = np.where(enough & ~np.isnan(table), table, np.inf).min(-1)
    with np.errstate(invalid="ignore"):
        width = np.where(enough.sum(-1) > 1, seen - least, np.nan)
    width = np.where(np.isfinite(width), width, np.nan)
    odds = np.fmax(width[..., 1], width[..., 2])
    return np.concatenate([width, odds[..., None]], axis=-1)


def _resampled(
    found: list[Group],
    true: np.ndarray,
    chosen: dict[str, np.ndarray],
    chance: dict[str, np.ndarray],
    seed: int,
) -> dict[str, np.ndarray]:
    """Row -> (resamples, rates, groups); the same draws for both."""
    rng, n = np.random.default_rng(seed), len(true)
    tables = [sums(found, true, chosen[row], chance[row]) for row in chosen]
    whole = np.concatenate(tables, axis=-1)
    totals = np.stack(
        [np.bincount(rng.integers(n, size=n), minlength=n) @ whole for _ in range(RESAMPLES)]
    )
    parts = np.split(totals, len(tables), axis=-1)
    return {row: rates_of(part) for row, part in zip(chosen, parts, strict=True)}


def _interval(value: Any, drawn: np.ndarray, n: int) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), n)


def _group(
    group: Group,
    k: int,
    enough: np.ndarray,
    values: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
    against: str,
) -> dict[str, Any]:
    n = len(group.places)
    value = {**values, "change": values[ADAPTED] - values[against]}
    spread = {**drawn, "change": drawn[ADAPTED] - drawn[against]}
    return {
        "name": group.name,
        "n": n,
        "few": [name for name, one in zip(RATES, enough, strict=True) if not one],
        **{
            row: {
                name: _interval(value[row][i, k], spread[row][:, i, k], n).as_dict()
                for i, name in enumerate(RATES)
            }
            for row in value
        },
    }


def _gap(
    i: int, gap: dict[str, np.ndarray], drawn: dict[str, np.ndarray], judged: Judged
) -> dict[str, Any]:
    n, against = len(judged.references), judged.against
    change = _interval(
        gap[ADAPTED][i] - gap[against][i], drawn[ADAPTED][:, i] - drawn[against][:, i], n
    )
    told = {row: _interval(gap[row][i], drawn[row][:, i], n).as_dict() for row in judged.pair}
    return {**told, "change": change.as_dict(), "widened": change.low > 0}
