"""Slices: the metric on the rows that share a value of a column, for two models side by side.

A column of numbers with many values is cut at its quartiles. The slices of a column are disjoint
and together all rows, so that a mean such as accuracy comes out again:

    Σ_g n_g m_g = n m

Intervals are those of each slice alone. Of many slices one differs by chance: five in a hundred
intervals miss. Slices of few rows are shown, and marked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.data.columns import BESIDE
from trimtab.evaluate.judged import ADAPTED, Judged
from trimtab.evaluate.metrics import METRICS, difference, interval

FEW = 30  # rows, under which a slice is marked
QUANTILES = 4
_MANY = 10  # values, beyond which numbers are cut at their quantiles
_MOST = 24  # slices of a column; the smallest beyond them are one


@dataclass(frozen=True)
class Group:
    """Rows that have something in common: where they are."""

    name: str
    places: np.ndarray

    @property
    def few(self) -> bool:
        return len(self.places) < FEW


def column(judged: Judged, name: str) -> list[str]:
    """A column that the task does not know, as it is written in the file."""
    if BESIDE + name not in judged.rows.column_names:
        raise InputError(f"the split that is evaluated has no column {name!r}")
    return list(judged.rows[BESIDE + name])


def groups(values: Sequence[str]) -> list[Group]:
    """Disjoint groups that together are all rows: by value, or numbers by quantile."""
    if (numbers := _numbers(values)) is not None:
        return _quantiles(numbers)
    counts = Counter(values)
    kept = {value for value, _ in counts.most_common(_MOST - (len(counts) > _MOST))}
    order = sorted(kept, key=lambda value: (-counts[value], value))
    column = np.array(values, dtype=object)
    found = [Group(value or "(empty)", np.flatnonzero(column == value)) for value in order]
    rest = np.array([i for i, value in enumerate(values) if value not in kept], dtype=int)
    if len(rest):
        found.append(Group(f"{len(counts) - len(kept)} other values", rest))
    return found


def _numbers(values: Sequence[str]) -> np.ndarray | None:
    """NaN where the cell is empty; None where the column is not one of many numbers."""
    try:
        numbers = np.array([float(value) if value else math.nan for value in values])
    except ValueError:
        return None
    defined = numbers[~np.isnan(numbers)]
    return numbers if np.isfinite(defined).all() and len(set(defined)) > _MANY else None


def _quantiles(numbers: np.ndarray) -> list[Group]:
    defined = numbers[~np.isnan(numbers)]
    cuts = np.unique(np.quantile(defined, np.linspace(0, 1, QUANTILES + 1)[1:-1]))
    which = np.searchsorted(cuts, numbers, side="left")
    found = []
    for i in range(len(cuts) + 1):
        inside = np.flatnonzero((which == i) & ~np.isnan(numbers))
        if len(inside):
            least, most = numbers[inside].min(), numbers[inside].max()
            found.append(Group(f"{least:g} to {most:g}", inside))
    if len(empty := np.flatnonzero(np.isnan(numbers))):
        found.append(Group("(empty)", empty))
    return found


def by_column(judged: Judged, name: str) -> dict[str, Any]:
    """The metric of each slice for both models, and the paired change between them."""
    return {
        "column": name,
        "few": FEW,
        "rows": list(judged.pair),
        "groups": [_measured(judged, group) for group in groups(column(judged, name))],
    }


def _measured(judged: Judged, group: Group) -> dict[str, Any]:
    metric, seed = METRICS[judged.session.task.metric], judged.session.config.seed
    references = [judged.references[i] for i in group.places]
    answers = {row: [judged.answers[row][i] for i in group.places] for row in judged.pair}
    change = difference(metric, answers[ADAPTED], answers[judged.against], references, seed=seed)
    return {
        "name": group.name,
        "n": len(group.places),
        "few": group.few,
        **{
            row: interval(metric, found, references, seed=seed).as_dict()
            for row, found in answers.items()
        },
        "change": change.as_dict(),
    }
