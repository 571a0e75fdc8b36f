"""Bootstrap intervals: they cover what they claim, pairing helps, the same seed gives the same."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.evaluate.bootstrap import (
    FEW_DISTINCT,
    Interval,
    interval,
    mean_interval,
    paired,
    paired_mean,
)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


def width(found: Interval) -> float:
    return found.high - found.low


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_covers_a_binomial_as_often_as_it_claims(rng):
    truth, runs = 0.8, 400
    found = [mean_interval(rng.random(300) < truth, resamples=1000, seed=i) for i in range(runs)]
    covered = sum(f.low <= truth <= f.high for f in found) / runs
    assert 0.92 <= covered <= 0.98  # 0.95, give or take three standard errors of 400 runs


def test_matches_the_normal_approximation_where_it_holds(rng):
    scores = rng.random(4000) < 0.7
    found = mean_interval(scores)
    expected = 1.96 * math.sqrt(found.value * (1 - found.value) / len(scores))
    assert width(found) / 2 == pytest.approx(expected, rel=0.06)


def test_fast_path_agrees_with_the_general_one(rng):
    labels = rng.integers(3, size=500)
    predictions = np.where(rng.random(500) < 0.8, labels, (labels + 1) % 3)
    general = interval(accuracy, predictions, labels, resamples=1500)
    fast = mean_interval(predictions == labels, resamples=1500)
    assert fast.value == pytest.approx(general.value)
    assert fast.low == pytest.approx(general.low, abs=0.006)
    assert fast.high == pytest.approx(general.high, abs=0.006)


def test_many_distinct_scores_agree_with_their_rounding(rng):
    scores = rng.random(2000)
    rounded = np.round(scores * 50) / 50
    assert len(np.unique(rounded)) <= FEW_DISTINCT < len(np.unique(scores))
    exact, coarse = mean_interval(scores), mean_interval(rounded)
    assert exact.low == pytest.approx(coarse.low, abs=0.003)
    assert exact.high == pytest.approx(coarse.high, abs=0.003)


def test_pairing_narrows_the_difference_of_correlated_models(rng):
    labels = rng.integers(2, size=800)
    a = np.where(rng.random(800) < 0.80, labels, 1 - labels)
    b = np.where(rng.random(800) < 0.04, 1 - a, a)  # b mostly repeats a, right and wrong
    difference = paired_mean(a == labels, b == labels)
    general = paired(accuracy, a, b, labels, resamples=800)
    assert general.value == pytest.approx(difference.value)
    assert width(general) == pytest.approx(width(difference), rel=0.15)
    unpaired = math.hypot(width(mean_interval(a == labels)), width(mean_interval(b == labels)))
    assert width(difference) < 0.5 * unpaired


def test_a_model_does_not_differ_from_itself(rng):
    scores = rng.random(50)
    same = paired_mean(scores, scores)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert same.includes_zero


@pytest.mark.parametrize(
    ("low", "high", "includes"),
    [(-0.1, 0.1, True), (0.0, 0.1, True), (0.01, 0.1, False), (-0.2, -0.1, False)],
)
def test_includes_zero(low, high, includes):
    assert Interval(0.0, low, high, 9).includes_zero is includes


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_has_no_width(right):
    found = mean_interval(np.full(40, right))
    assert found == Interval(float(right), float(right), float(right), 40)
    assert interval(accuracy, [1] * 40, [int(right)] * 40, resamples=50) == found


def test_one_example():
    assert mean_interval([1]) == Interval(1.0, 1.0, 1.0, 1)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=60),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_interval_is_ordered_within_the_scores_and_repeatable(scores, seed):
    found = mean_interval(scores, resamples=200, seed=seed)
    slack = 1e-12
    assert min(scores) - slack <= found.low <= found.high <= max(scores) + slack
    assert min(scores) - slack <= found.value <= max(scores) + slack
    assert found == mean_interval(scores, resamples=200, seed=seed)


def test_the_seed_decides(rng):
    labels, predictions = rng.integers(2, size=(2, 90))
    first, again, other = (
        interval(accuracy, predictions, labels, resamples=100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_sequences_of_unequal_length_and_strings():
    predictions, labels = [["O"], ["B", "I"], ["O", "O", "O"]], [["O"], ["B", "O"], ["O"] * 3]

    def exact(p: np.ndarray, t: np.ndarray) -> float:
        return sum(a == b for a, b in zip(p, t, strict=True)) / len(t)

    assert interval(exact, predictions, labels, resamples=50).value == pytest.approx(2 / 3)
    assert interval(accuracy, ["a", "b"], ["a", "c"], resamples=50).value == 0.5


def test_a_metric_undefined_on_some_resamples_leaves_them_out():
    def share_of_positives_found(p: np.ndarray, t: np.ndarray) -> float:
        return float(p[t == 1].mean()) if (t == 1).any() else math.nan

    found = interval(share_of_positives_found, [1, 0, 0, 1], [1, 0, 0, 0], resamples=200)
    assert found == Interval(1.0, 1.0, 1.0, 4)


def test_a_metric_defined_nowhere_becomes_null_in_json():
    found = interval(lambda p, t: math.nan, [1, 2], [1, 2], resamples=5)
    assert found.includes_zero
    assert json.dumps(found.as_dict()) == '{"value": null, "low": null, "high": null, "n": 2}'


def test_a_hundred_thousand_examples_are_quick_and_small():
    import tracemalloc

    scores = np.random.default_rng(0).random(100_000)
    tracemalloc.start()
    mean_interval(scores, resamples=20)
    mean_interval(scores < 0.9, resamples=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(accuracy, [], []), "at least one example"),
        (lambda: mean_interval([]), "at least one example"),
        (lambda: interval(accuracy, [1, 2], [1]), "predictions has 2, labels has 1"),
        (lambda: paired(accuracy, [1], [1, 2], [1, 2]), "predictions_a has 1"),
        (lambda: paired_mean([1, 0], [1]), "scores_b has 1"),
        (lambda: mean_interval([1.0, math.nan]), "1 of 2 scores are NaN"),
        (lambda: mean_interval(["a", "b"]), "one number per example"),
        (lambda: mean_interval([[1, 2], [3, 4]]), "one number per example"),
        (lambda: mean_interval([1], resamples=0), "resamples must be at least 1"),
        (lambda: interval(accuracy, [1], [1], resamples=0), "resamples must be at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
