"""What a metric is, and how sure it is: 95 % bootstrap intervals and paired differences.

Most metrics of a whole test set depend on the examples only through sums over them: F1 through
counts of right and wrong, BLEU through counts of n-grams, a correlation through moments:

    value = of(Σᵢ sᵢ)        resampled: of(Σᵢ cᵢ sᵢ),   c ~ Multinomial(n, 1/n)

where cᵢ says how often example i was drawn. So a text is tokenised or a map counted once, and a
resample costs one product of a vector and a matrix (as sacrebleu does it; Koehn, "Statistical
Significance Tests for Machine Translation Evaluation", EMNLP 2004). What is reported is always what
the library computes of the examples themselves; a test holds `of(sums)` to it.

What is undefined, such as the area under a curve without positives, is NaN: no exception and no
warning. Libraries are imported when a metric is computed.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate import bootstrap
from trimtab.evaluate.bootstrap import Interval, mean_interval, paired_mean

Column = Sequence[Any]
Each = Callable[[Any, Any], float]
Chosen = Callable[[np.ndarray], float]  # the places of examples -> the metric's value on them
Unit = Literal["share", "points", ""]  # from 0 to 1; from 0 to 100; counted in something else


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by the field's name. Functions take predictions before references.

    Of the ways in which it is resampled, one is given:

    - `mean`: the value is the mean of `each`;
    - `sums`, a row of numbers for each example, (n, k), dense or sparse, and `of`, which makes
      (…) values of (…, k) totals;
    - `prepare`, which computes once what does not depend on the examples drawn;
    - none of these: `compute` sees every resample, `resamples` times.

    `each` is an example's own score, in the metric's direction: where not `higher`, less is better.
    """

    name: str
    description: str
    compute: Callable[[Column, Column], float] | None = None  # by the library; of a mean, numpy's
    each: Each | None = None
    mean: bool = False
    sums: Callable[[Column, Column], Any] | None = None
    of: Callable[[np.ndarray], np.ndarray] | None = None
    prepare: Callable[[Column, Column], Chosen] | None = None
    higher: bool = True
    unit: Unit = "share"
    resamples: int = 2000

    def value(self, predictions: Column, references: Column) -> float:
        """The metric of all examples; NaN where it is undefined, as it is of none."""
        if not self._examples(predictions, references):
            return np.nan
        with quiet():
            if self.compute is None:
                return float(np.mean(self.scores(predictions, references)))
            return float(self.compute(predictions, references))

    def scores(self, predictions: Column, references: Column) -> np.ndarray:
        """(n,): each example's own score."""
        assert self.each is not None, f"{self.name} has no score of one example"
        with quiet():
            pairs = zip(predictions, references, strict=True)
            return np.array([self.each(*pair) for pair in pairs], dtype=float)

    def chosen(self, predictions: Column, references: Column) -> Chosen:
        """The metric as a function of which examples were drawn."""
        n = self._examples(predictions, references)
        if self.sums is not None and self.of is not None:
            of, rows = self.of, self.sums(predictions, references).T
            return lambda drawn: float(of(rows @ np.bincount(drawn, minlength=n).astype(float)))
        if self.prepare is not None:
            return self.prepare(predictions, references)
        compute = self.compute
        assert compute is not None
        return lambda drawn: compute(
            [predictions[i] for i in drawn], [references[i] for i in drawn]
        )

    def _examples(self, predictions: Column, references: Column) -> int:
        if len(predictions) != len(references):
            raise InputError(
                f"{self.name} needs one prediction for each reference: there are "
                f"{len(predictions):,} predictions and {len(references):,} references"
            )
        return len(references)


def interval(
    metric: Metric,
    predictions: Column,
    references: Column,
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> Interval:
    """The metric with its interval. Without `resamples`, as many as the metric has time for."""
    draws = _draws(metric, references, resamples)
    value = metric.value(predictions, references)
    if metric.mean:
        scores = metric.scores(predictions, references)
        if not np.isfinite(scores).all():
            return _undefined(len(scores))
        return mean_interval(scores, resamples=draws, seed=seed)
    with quiet():
        at = metric.chosen(predictions, references)
        return replace(_drawn(at, len(references), draws, seed), value=value)


def difference(
    metric: Metric,
    a: Column,
    b: Column,
    references: Column,
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> Interval:
    """metric(a) - metric(b) with its interval, both on the same drawn examples."""
    draws = _draws(metric, references, resamples)
    value = metric.value(a, references) - metric.value(b, references)
    if metric.mean:
        of_a, of_b = metric.scores(a, references), metric.scores(b, references)
        if not np.isfinite([of_a, of_b]).all():
            return _undefined(len(of_a))
        return paired_mean(of_a, of_b, resamples=draws, seed=seed)
    with quiet():
        at_a, at_b = metric.chosen(a, references), metric.chosen(b, references)
        found = _drawn(lambda drawn: at_a(drawn) - at_b(drawn), len(references), draws, seed)
        return replace(found, value=value)


def _draws(metric: Metric, references: Column, resamples: int | None) -> int:
    if not len(references):
        raise InputError(
            f"the interval of {metric.name} needs at least one example, found none. "
            "Check that the split has rows."
        )
    return metric.resamples if resamples is None else resamples


def _drawn(at: Chosen, n: int, resamples: int, seed: int) -> Interval:
    """By the general bootstrap, of which the examples are places."""
    places = np.arange(n)
    return bootstrap.interval(
        lambda drawn, _: at(drawn), places, places, resamples=resamples, seed=seed
    )


def _undefined(n: int) -> Interval:
    return Interval(np.nan, np.nan, np.nan, n)


def mean_of_defined(name: str, description: str, each: Each, **facts: Any) -> Metric:
    """A mean over the examples whose own score is not NaN."""

    def sums(predictions: Column, references: Column) -> np.ndarray:
        scores = np.array([each(*pair) for pair in zip(predictions, references, strict=True)])
        defined = ~np.isnan(scores)
        return np.stack([np.where(defined, scores, 0.0), defined], axis=-1)

    def compute(predictions: Column, references: Column) -> float:
        return float(ratio(sums(predictions, references).sum(0)))

    given = {"compute": compute, "each": each, "sums": sums, "of": ratio, **facts}
    return Metric(name=name, description=description, **given)


def ratio(totals: np.ndarray) -> np.ndarray:
    """(…, 2) -> (…): a quotient of two sums; NaN where the second is zero."""
    return divide(totals[..., 0], totals[..., 1])


def divide(numerator: Any, denominator: Any) -> np.ndarray:
    """NaN where the denominator is zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def mean_defined(scores: np.ndarray) -> np.ndarray:
    """(…, k) -> (…): the mean of those that are not NaN; NaN where none is."""
    defined = ~np.isnan(scores)
    return divide(np.where(defined, scores, 0.0).sum(-1), defined.sum(-1))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of what is undefined; here that is NaN, for the caller to show."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def library(module: str) -> Any:
    """A module of a library that metrics are computed by."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this metric is computed by {module.partition('.')[0]}, and {error.name} is not "
            "installed: pip install 'trimtab[tasks]'"
        ) from None
