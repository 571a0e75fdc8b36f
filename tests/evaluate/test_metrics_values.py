"""The metrics' numbers: by hand, by another way to the same library, by another library."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from metric_cases import boxes, one_label, scored, tags, texts

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics import METRICS, by_label, difference, interval, naive_scale


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def value(name: str, predictions, references) -> float:
    return METRICS[name].value(predictions, references)


def test_f1_of_one_label_an_example_is_scikit_learns(rng) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found, true = ([str(x) for x in column] for column in one_label(rng, 80))
    assert value("macro_f1", found, true) == pytest.approx(f1_score(true, found, average="macro"))
    assert value("micro_f1", found, true) == pytest.approx(accuracy_score(true, found))
    assert value("accuracy", found, true) == accuracy_score(true, found)
    assert value("mcc", found, true) == pytest.approx(matthews_corrcoef(true, found))
    by = by_label(found, true)
    for label in by:
        one = f1_score(true, found, labels=[label], average="macro")
        assert by[label] == pytest.approx(one)


def test_f1_by_label_of_several() -> None:
    found = by_label([["a", "b"], ["a"], []], [["a"], ["b"], ["b"]])
    assert found == pytest.approx({"a": 2 / 3, "b": 0.0})
    assert by_label([[]], [[]]) == {}


def test_entities_are_seqevals(rng) -> None:
    from seqeval.metrics import f1_score

    found, true = tags(rng, 50)
    assert value("entity_f1", found, true) == f1_score(true, found)
    arrays = [np.array(row) for row in found]
    assert value("entity_f1", arrays, true) == f1_score(true, found)


def test_tags_are_compared_word_by_word() -> None:
    with pytest.raises(InputError, match="example 1 has 1 predicted tags and 2 true ones"):
        value("entity_f1", [["O"], ["O"]], [["O"], ["O", "O"]])


def test_bleu_is_sacrebleus_example() -> None:
    """Of its documentation, with several references."""
    found = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    first = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    second = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    true = [list(pair) for pair in zip(first, second, strict=True)]
    assert value("bleu", found, true) == pytest.approx(48.530827, abs=1e-5)


def test_a_number_of_references_of_its_own_for_each() -> None:
    from sacrebleu import CHRF

    found, true = ["a cat", "a dog ran"], [["a cat", "one cat"], "the dog ran"]
    expected = CHRF().corpus_score(found, [["a cat", "the dog ran"], ["one cat", None]]).score
    assert value("chrf", found, true) == expected


def test_rouge_of_the_longest_common_subsequence() -> None:
    found, true = "the cat under the bed", "the cat was found under the bed"
    assert value("rougeL", [found], [true]) == pytest.approx(10 / 12)
    assert value("rouge2", [found], [true]) == pytest.approx(2 * 3 / (4 + 6))


def test_rouge_compares_stems() -> None:
    assert value("rouge1", ["cats running"], ["the cats runs"]) == pytest.approx(2 * 2 / 5)


def test_a_resample_of_one_example_has_no_correlation(rng) -> None:
    """Though what rounding leaves of its variance is not always zero."""
    columns = (rng.normal(size=(2, 60)) / 3).tolist()
    for name in ("pearson", "spearman"):
        at = METRICS[name].chosen(*columns)
        with np.errstate(all="ignore"):
            assert all(math.isnan(at(np.full(60, i))) for i in range(60))


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("in the year 1999", "1999", 0, 0.5),
        ("a an the", "", 1, 1),
        ("U.S.A.", "USA", 1, 1),
        ("blue", ["red", "dark blue"], 0, 2 / 3),
        ("red red", "red", 0, 2 / 3),
        ("theatre", "atre", 0, 0),
    ],
)
def test_answers_as_squad_compares_them(answer, right, exact, f1) -> None:
    assert value("squad_exact_match", [answer], [right]) == exact
    assert value("squad_f1", [answer], [right]) == pytest.approx(f1)


def test_error_rates_are_over_all_references() -> None:
    found, true = ["a b x", "c"], ["a b c d", "c"]
    assert value("word_error_rate", found, true) == pytest.approx(2 / 5)
    assert value("character_error_rate", ["abx"], ["abcd"]) == pytest.approx(2 / 4)
    listed = [one.split() for one in found], [one.split() for one in true]
    assert value("phoneme_error_rate", *listed) == value("phoneme_error_rate", found, true)


def test_ranks_by_another_way_to_scikit_learn(rng) -> None:
    from sklearn.metrics import ndcg_score, top_k_accuracy_score

    scores, true = rng.normal(size=(40, 12)), rng.integers(12, size=40)
    ranks = (scores > scores[np.arange(40), true][:, None]).sum(1) + 1
    relevant = np.eye(12)[true]
    for k in (1, 3, 10):
        top = top_k_accuracy_score(true, scores, k=k, labels=range(12))
        assert value(f"recall_at_{k}", ranks, ranks) == pytest.approx(top)
        assert value(f"hit_rate_at_{k}", ranks, ranks) == pytest.approx(top)
        assert value(f"ndcg_at_{k}", ranks, ranks) == pytest.approx(
            ndcg_score(relevant, scores, k=k)
        )


def test_recall_of_several_relevant_items() -> None:
    assert value("recall_at_3", [[1, 5], [2]], [None] * 2) == pytest.approx(0.75)
    assert value("hit_rate_at_3", [[1, 5], [9]], [None] * 2) == pytest.approx(0.5)
    ideal = 1 + 1 / math.log2(3)
    assert value("ndcg_at_3", [[1, 5]], [None]) == pytest.approx(1 / ideal)


def test_ranks_count_from_one() -> None:
    with pytest.raises(InputError, match="ranks count from 1; there is a rank of 0"):
        value("recall_at_1", [0], [None])


def test_the_area_under_the_curve_is_a_chance(rng) -> None:
    scores, true = map(np.array, scored(rng, 60))
    above = scores[true][:, None] - scores[~true][None]
    expected = (above > 0).mean() + (above == 0).mean() / 2
    assert value("roc_auc", scores.tolist(), true.tolist()) == pytest.approx(expected)


def test_iou_by_hand() -> None:
    true = [np.array([[0, 0, 1], [1, 2, 255]]), np.array([[2, 2], [2, 2]])]
    found = [np.array([[0, 1, 1], [1, 1, 0]]), np.array([[2, 2], [2, 0]])]
    # class 0: 1 of 3, class 1: 2 of 4, class 2: 3 of 5
    assert value("mean_iou", found, true) == pytest.approx((1 / 3 + 2 / 4 + 3 / 5) / 3)
    assert value("dice", found, true) == pytest.approx((2 / 4 + 4 / 6 + 6 / 8) / 3)


def test_maps_fit_their_references() -> None:
    with pytest.raises(InputError, match=r"a map of \(2, 2\) pixels does not fit"):
        value("mean_iou", [np.zeros((2, 2))], [np.zeros((3, 2))])


def test_boxes_that_are_half_right() -> None:
    """IoU 0.8: right at 0.50, 0.55, …, 0.80 of the ten thresholds."""
    true = [{"boxes": [[0, 0, 10, 10]], "labels": ["cat"]}]
    found = [{"boxes": [[0, 0, 10, 8]], "scores": [0.9], "labels": ["cat"]}]
    assert value("mean_average_precision", found, true) == pytest.approx(0.7)
    wrong = [{**found[0], "labels": ["dog"]}]
    assert value("mean_average_precision", wrong, true) == 0
    crowd = [{"boxes": [[0, 0, 10, 10], [20, 20, 9, 9]], "labels": ["cat", "cat"],
              "iscrowd": [0, 1]}]  # fmt: skip
    assert value("mean_average_precision", found, crowd) == pytest.approx(0.7)


def test_boxes_are_counted_in_silence(rng, capfd) -> None:
    interval(METRICS["mean_average_precision"], *boxes(rng, 5), resamples=3)
    assert capfd.readouterr() == ("", "")


def test_the_scale_of_a_forecast() -> None:
    assert naive_scale([1, 3, 2]) == 1.5
    assert naive_scale([1, 5, 2, 7], season=2) == 1.5
    assert naive_scale([1, math.nan, 2, 4]) == 2
    assert math.isnan(naive_scale([1, 2], season=2))
    repeated = [3.0, 3.0], ([4.0, 2.0], naive_scale([1, 2, 3]))
    assert value("mase", [repeated[0]], [repeated[1]]) == 1


def test_a_loss_that_diverged_has_no_interval() -> None:
    found = interval(METRICS["denoising_loss"], [math.nan, 1.0], [None] * 2)
    assert found.n == 2
    assert all(map(math.isnan, (found.value, found.low, found.high)))


@pytest.mark.parametrize("name", ["macro_f1", "chrf", "bleu"])
def test_intervals_are_quick_and_small(name: str, rng) -> None:
    columns = texts(rng, 1000) if name != "macro_f1" else [
        [str(x) for x in rng.integers(150, size=20_000)] for _ in range(2)
    ]  # fmt: skip
    start = time.perf_counter()
    difference(METRICS[name], columns[0], columns[0][::-1], columns[1])
    assert time.perf_counter() - start < 20  # a library's call for each resample takes minutes
    tracemalloc.start()
    interval(METRICS[name], *columns, resamples=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
