"""Every metric is what its library computes, is resampled as such, and is never an exception."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from metric_cases import EDGES, TAKES, WAYS, numbers, one_label, texts

from trimtab.core.errors import InputError
from trimtab.evaluate.bootstrap import mean_interval, paired_mean
from trimtab.evaluate.metrics import METRICS, Metric, difference, interval

NAMES = sorted(METRICS)
SUMMED = [name for name in NAMES if METRICS[name].sums is not None]
RESAMPLED = [name for name in NAMES if not METRICS[name].mean]
EDGE = [(name, *edge) for name, edges in EDGES.items() for edge in edges]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def close(a: float, b: float) -> bool:
    return a == pytest.approx(b, rel=1e-9, abs=1e-12, nan_ok=True)


def of_sums(metric: Metric, predictions: list, references: list) -> float:
    assert metric.sums is not None
    assert metric.of is not None
    with np.errstate(all="ignore"):
        return float(metric.of(metric.sums(predictions, references).sum(0)))


def test_every_metric_has_its_cases() -> None:
    assert set(TAKES) == set(EDGES) == set(METRICS)


@pytest.mark.parametrize("name", SUMMED)
@pytest.mark.parametrize("n", [1, 2, 17, 60])
def test_the_sums_tell_what_the_library_computes(name: str, n: int, rng) -> None:
    for _ in range(3):
        columns = TAKES[name](rng, n)
        assert close(of_sums(METRICS[name], *columns), METRICS[name].value(*columns))


@pytest.mark.parametrize(("name", "predictions", "references", "expected"), EDGE)
def test_at_the_edge(name, predictions, references, expected) -> None:
    """In a suite where a warning is an error."""
    metric = METRICS[name]
    found = metric.value(predictions, references)
    assert isinstance(found, float)
    if expected is not None:
        assert close(found, expected)
    if metric.sums is not None and name != "entity_f1":
        assert close(of_sums(metric, predictions, references), found)
    sure = interval(metric, predictions, references, resamples=20)
    assert close(sure.value, found)
    assert sure.n == len(references)
    same = difference(metric, predictions, predictions, references, resamples=20)
    assert same.value == 0 or not math.isfinite(found)


@pytest.mark.parametrize("name", NAMES)
def test_of_no_examples(name: str) -> None:
    assert math.isnan(METRICS[name].value([], []))
    with pytest.raises(InputError, match="at least one example"):
        interval(METRICS[name], [], [])


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_resample_is_the_metric_of_the_drawn_examples(name: str, rng) -> None:
    """By the library, of the examples themselves, as often as they were drawn."""
    n = 25
    predictions, references = TAKES[name](rng, n)
    at = METRICS[name].chosen(predictions, references)
    for _ in range(4):
        drawn = rng.integers(n, size=n)
        taken = [predictions[i] for i in drawn], [references[i] for i in drawn]
        assert close(at(drawn), METRICS[name].value(*taken))


@pytest.mark.parametrize("name", [name for name in NAMES if METRICS[name].mean])
def test_a_mean_is_the_mean_of_its_examples(name: str, rng) -> None:
    metric, columns = METRICS[name], TAKES[name](rng, 40)
    scores = metric.scores(*columns)
    assert close(metric.value(*columns), scores.mean())
    assert interval(metric, *columns, seed=3) == mean_interval(scores, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_ordered_repeatable_and_paired(name: str, rng) -> None:
    metric, (predictions, references) = METRICS[name], TAKES[name](rng, 30)
    found = interval(metric, predictions, references, seed=5, resamples=60)
    assert found == interval(metric, predictions, references, seed=5, resamples=60)
    assert found.low <= found.high
    assert close(found.value, metric.value(predictions, references))
    none = difference(metric, predictions, predictions, references, resamples=20)
    assert (none.value, none.low, none.high) == (0, 0, 0)
    others = TAKES[name](rng, 30)[0]
    if name in (
        "entity_f1",
        "mase",
        "forecast_mae",
    ):  # whose predictions have the sizes of the references
        others = predictions[:15] + [np.roll(row, 1).tolist() for row in predictions[15:]]
    there = difference(metric, predictions, others, references, seed=2, resamples=60)
    back = difference(metric, others, predictions, references, seed=2, resamples=60)
    assert close(there.value, -back.value)
    if not metric.mean:  # of which few distinct scores are drawn by their counts, in order
        assert close(there.low, -back.high)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_an_examples_own_score(name: str, rng) -> None:
    metric = METRICS[name]
    if metric.each is None:
        areas = ("roc_auc", "macro_roc_auc", "average_precision", "mean_average_precision")
        assert name in areas
        return
    scores = metric.scores(*TAKES[name](rng, 20))
    assert scores.shape == (20,)
    worse, better = (metric.each(*pair) for pair in worse_and_better(name))
    assert (better > worse) == metric.higher


def worse_and_better(name: str):
    """A bad example and a good one, as this metric takes them."""
    kind = TAKES[name].__name__
    return {
        "one_label": [("a", "b"), ("a", "a")],
        "labels": [(["a"], ["b"]), (["a"], ["a"])],
        "numbers": [(1.0, 5.0), (1.0, 1.5)],
        "tags": [(["O"], ["B-X"]), (["B-X"], ["B-X"])],
        "texts": [("dogs ran", "the cat sat on a mat"), ("the cat sat on", "the cat sat on")],
        "spoken": [("x y", "a b"), ("a b", "a b")],
        "phonemes": [(["x", "y"], "a b"), (["a", "b"], "a b")],
        "losses": [((9.0, 3), None), ((2.0, 3), None)],
        "one_number": [(-1.0, None), (1.0, None)]
        if METRICS[name].higher
        else [(1.0, None), (0.5, None)],
        "two_margins": [((1.0, -1.0), None), ((-1.0, 1.0), None)],
        "forecasts": [([9.0], ([1.0], 1.0)), ([1.0], ([1.0], 1.0))],
        "ranked": [(12, None), (1, None)],
        "both_ways": [(dict.fromkeys(WAYS, 12), None), (dict.fromkeys(WAYS, 1), None)],
        "maps": [(np.array([0, 1]), np.array([1, 0])), (np.array([0, 1]), np.array([0, 1]))],
    }[kind]


def test_accuracy_is_what_it_was_bit_for_bit(rng) -> None:
    predictions, references = one_label(rng, 1000)
    others, _ = one_label(rng, 1000)
    right, also = (
        np.array([p == r for p, r in zip(one, references, strict=True)]).astype(np.float64)
        for one in (predictions, others)
    )
    accuracy = METRICS["accuracy"]
    assert interval(accuracy, predictions, references, seed=7) == mean_interval(right, seed=7)
    found = difference(accuracy, predictions, others, references, seed=7)
    assert found == paired_mean(right, also, seed=7)
    assert (
        accuracy.value(predictions, references) == interval(accuracy, predictions, references).value
    )


def test_sums_and_the_plain_bootstrap_agree(rng) -> None:
    """The same draws, the same interval: only the way to it is shorter."""
    for name, columns in (("bleu", texts(rng, 40)), ("rmse", numbers(rng, 40))):
        metric = METRICS[name]
        plain = replace(metric, sums=None, of=None)
        short, long = (interval(m, *columns, resamples=50, seed=1) for m in (metric, plain))
        assert close(short.low, long.low)
        assert close(short.high, long.high)


def test_pairing_narrows_the_difference(rng) -> None:
    found, true = texts(rng, 60)
    other = [one.replace("sat", "lay") for one in found]
    chrf = METRICS["chrf"]
    paired = difference(chrf, found, other, true, resamples=300)
    alone = interval(chrf, found, true, resamples=300)
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_predictions_as_references(name: str, rng) -> None:
    predictions, references = TAKES[name](rng, 4)
    for call in (METRICS[name].value, lambda *columns: interval(METRICS[name], *columns)):
        with pytest.raises(InputError, match="3 predictions and 4 references"):
            call(predictions[:3], references)


MISSING = {
    "sklearn.metrics": ("macro_f1", "mcc", "roc_auc", "rmse", "mean_iou", "ndcg_at_5"),
    "scipy.stats": ("pearson",),
    "seqeval.metrics": ("entity_f1",),
    "seqeval.metrics.sequence_labeling": ("entity_f1",),
    "sacrebleu": ("chrf",),
    "rouge_score.rouge_scorer": ("rougeL",),
    "jiwer": ("word_error_rate",),
    "pycocotools.coco": ("mean_average_precision",),
}


@pytest.mark.parametrize(("module", "names"), MISSING.items())
def test_a_library_that_is_absent_is_named(module, names, rng, monkeypatch) -> None:
    from trimtab.evaluate.metrics import text

    text._sacrebleu.cache_clear()
    text._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    for name in names:
        with pytest.raises(InputError, match=r"pip install 'trimtab\[tasks\]'"):
            METRICS[name].value(*TAKES[name](rng, 20))


def test_no_library_is_imported_before_it_is_asked() -> None:
    heavy = ["sklearn", "scipy", "seqeval", "sacrebleu", "rouge_score", "jiwer", "pycocotools"]
    code = (
        "import sys\nfrom trimtab.evaluate.metrics import METRICS, interval\n"
        "interval(METRICS['accuracy'], ['a', 'b'], ['a', 'a'])\n"
        f"assert not set({heavy}) & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_names() -> None:
    assert METRICS["recall_at_7"].name == "recall_at_7" in METRICS
    assert "recall_at_0" not in METRICS
    assert all(METRICS[name].name == name for name in METRICS)
    assert all(METRICS[name].description for name in METRICS)
    with pytest.raises(InputError, match=r"no metric is called 'f1_macro'; .*'macro_f1'"):
        METRICS["f1_macro"]
