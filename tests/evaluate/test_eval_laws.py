"""The laws of what `eval` looks at beside the metric: slices are all rows again, rates are
fairlearn's, a perfect forecaster is calibrated, typos leave what is not theirs."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from fairlearn import metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data import Column
from trimtab.evaluate import calibration, fairness, perturb, stereotypes
from trimtab.evaluate.judged import softmax
from trimtab.evaluate.slices import Group, groups

RNG = np.random.default_rng(0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["", "a", "b", *map(str, range(30)), "2.5"]), min_size=1, max_size=200)
)
def test_slices_are_all_rows_once(values: list[str]) -> None:
    found = groups(values)
    together = np.concatenate([group.places for group in found])
    assert sorted(together) == list(range(len(values)))
    assert len({group.name for group in found}) == len(found)
    scores = RNG.random(len(values))
    parts = sum(len(g.places) * scores[g.places].mean() for g in found)
    assert parts / len(values) == pytest.approx(scores.mean())


def test_numbers_are_cut_at_their_quartiles() -> None:
    ages = [str(n) for n in range(100)] + [""]
    assert [(g.name, len(g.places)) for g in groups(ages)] == [
        ("0 to 24", 25),
        ("25 to 49", 25),
        ("50 to 74", 25),
        ("75 to 99", 25),
        ("(empty)", 1),
    ]


def test_many_values_end_in_one_slice() -> None:
    values = [f"v{n}" for n in range(100) for _ in range(100 - n)]
    *named, rest = groups(values)
    assert len(named) == 23
    assert rest.name == "77 other values"


def people(n: int) -> tuple[list[Group], np.ndarray, np.ndarray, np.ndarray]:
    """Groups, what is true, what was chosen, and by which chance."""
    which, true = RNG.integers(3, size=n), RNG.random(n) < 0.4
    chance = np.clip(0.5 * true + 0.5 * RNG.random(n), 0, 1)
    return [Group(str(k), np.flatnonzero(which == k)) for k in range(3)], true, chance > 0.5, chance


def test_rates_are_fairlearns_by_sums() -> None:
    found, true, chosen, chance = people(400)
    by_library = fairness.rates(found, true, chosen, chance)
    by_sums = fairness.rates_of(fairness.sums(found, true, chosen, chance).sum(0))
    np.testing.assert_allclose(by_sums, by_library)
    which = np.empty(400, dtype=int)
    for k, group in enumerate(found):
        which[group.places] = k
    gaps = fairness.gaps(by_library, np.ones_like(by_library, dtype=bool))
    asked = {"y_true": true, "y_pred": chosen, "sensitive_features": which}
    assert gaps[0] == pytest.approx(metrics.demographic_parity_difference(**asked))
    assert gaps[-1] == pytest.approx(metrics.equalized_odds_difference(**asked))


def test_a_rate_over_nobody_is_not_defined_and_no_part_of_a_gap() -> None:
    found, true, chosen, chance = people(400)
    true[found[2].places] = False  # nobody of the third group whom one could rightly choose
    rates = fairness.rates(found, true, chosen, chance)
    assert np.isnan(rates[1, 2])
    assert not np.isnan(rates[2]).any()
    gaps = fairness.gaps(rates, fairness.sizes(found, true) >= fairness.FEW)
    assert gaps[1] == pytest.approx(abs(rates[1, 0] - rates[1, 1]))


def forecasts(n: int, labels: int = 3) -> tuple[np.ndarray, list[int]]:
    """Logits, and labels drawn from their very probabilities."""
    z = 2 * RNG.standard_normal((n, labels))
    drawn = (softmax(z).cumsum(-1) < RNG.random((n, 1))).sum(-1)
    return z, drawn.clip(0, labels - 1).tolist()


def test_a_perfect_forecaster_is_calibrated() -> None:
    z, true = forecasts(20_000)
    assert calibration.ECE.value(list(softmax(z)), true) < 0.015
    assert calibration.fit_temperature(z, np.array(true)) == pytest.approx(1, abs=0.05)
    for one in calibration.reliability(softmax(z), true):
        assert one["confidence"] == pytest.approx(one["accuracy"]["value"], abs=0.06)


def test_a_boaster_is_cooled() -> None:
    z, true = forecasts(20_000)
    assert calibration.ECE.value(list(softmax(3 * z)), true) > 0.1
    t = calibration.fit_temperature(3 * z, np.array(true))
    assert t == pytest.approx(3, abs=0.15)
    assert calibration.ECE.value(list(softmax(3 * z / t)), true) < 0.015


def test_scores_of_calibration_by_hand() -> None:
    p = [np.array([0.9, 0.1]), np.array([0.9, 0.1]), np.array([0.4, 0.6])]
    true = [0, 1, 1]
    assert calibration.ECE.value(p, true) == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert calibration.BRIER.value(p, true) == pytest.approx((0.02 + 1.62 + 0.32) / 3)
    drawn = calibration.ECE.chosen(p, true)(np.array([0, 1]))  # as a resample has it
    assert drawn == pytest.approx(0.4)


@pytest.mark.parametrize("name", [*perturb.TYPOS, *perturb.CASES])
@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.integers(0, 5))
def test_a_change_follows_from_its_seed(name: str, text: str, seed: int) -> None:
    once, again = (perturb.text(text, name, random.Random(seed)) for _ in range(2))
    assert once == again
    assert (once == "") == (text == "")


def test_typos_are_small() -> None:
    text = "The quick brown fox jumps over a lazy dog, and again over another one"
    drawn = random.Random(1)
    near = perturb.text(text, "neighbouring key", drawn)
    moved = [(a, b) for a, b in zip(text, near, strict=True) if a != b]
    assert moved
    assert all(b in perturb.neighbours()[a] for a, b in moved)
    assert len(perturb.text(text, "dropped letter", drawn)) < len(text)
    assert Counter(perturb.text(text, "swapped letters", drawn)) == Counter(text)
    words = [len(perturb.text(text, name, drawn).split()) for name in perturb.TYPOS]
    assert words == 3 * [len(text.split())]
    assert perturb.text("a to it", "dropped letter", drawn) == "a to it"  # no word is long enough


def test_keys_are_neighbours_of_each_other() -> None:
    near = perturb.neighbours()
    assert set(near) == set("abcdefghijklmnopqrstuvwxyz")
    assert all(a in near[b] for a, others in near.items() for b in others)
    assert set(near["g"]) == set("ftyhvb")


def test_tagged_words_stay_as_many() -> None:
    column, given = Column("words", (), kind="words"), [["Angela", "Merkel", "spoke"]] * 20
    import datasets

    rows = datasets.Dataset.from_dict({"words": given})
    changed = perturb.changed(rows, [column], "dropped letter", 0)["words"]
    assert [len(row) for row in changed] == 20 * [3]
    assert changed != given


def test_pairs_of_sentences_are_balanced_and_differ_in_one_place() -> None:
    pairs = stereotypes.pairs()
    assert set(Counter(pair.kind for pair in pairs).values()) == {10}
    assert len({pair.stereotyped for pair in pairs}) == len(pairs) == 60
    for pair in pairs:
        one, other = pair.stereotyped.split(), pair.other.split()
        assert len(one) == len(other)
        assert 1 <= sum(a != b for a, b in zip(one, other, strict=True)) <= 2


def test_only_what_both_sentences_share_is_compared() -> None:
    """The group's own likelihood, here huge and tiny, is left out."""
    chances = {(1, 7, 3, 4): [-90.0, -1.0, -2.0], (1, 8, 3, 4): [-0.1, -1.0, -3.0]}

    def each(tokens: object) -> list[float]:
        return chances[tuple(tokens)]  # type: ignore[arg-type]

    assert stereotypes.prefers([1, 7, 3, 4], [1, 8, 3, 4], each) == 1.0
    assert stereotypes.prefers([1, 8, 3, 4], [1, 7, 3, 4], each) == 0.0
    assert stereotypes.prefers([1, 8, 3, 4], [1, 8, 3, 4], each) == 0.5
