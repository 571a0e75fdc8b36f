"""Metrics of labels: one label an example, several labels an example, a tag for each word.

    accuracy    the share of examples whose label is right
    F1          2 tp / (2 tp + fp + fn) = 2 tp / (predicted + true), of one label
    macro F1    its mean over the labels that occur among predictions or references
    micro F1    the same of tp, fp and fn summed over labels
    MCC         (c n - Σₖ pₖ tₖ) / √((n² - Σₖ pₖ²) (n² - Σₖ tₖ²)),  c of n right, pₖ times label k
                was predicted and tₖ times it was true (Gorodkin, "Comparing two K-category
                assignments by a K-category correlation coefficient", 2004); 0 where all
                predictions, or all references, are the same, as scikit-learn has it
    entity F1   micro F1 of entities: a type, a beginning and an end, all of them right (Tjong Kim
                Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003), read off
                the tags as conlleval does it, by seqeval

F1, MCC: scikit-learn.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.evaluate.metrics.metric import Column, Metric, divide, library, mean_defined


def as_set(row: Any) -> frozenset[Hashable]:
    """The labels of an example: of one label, that one."""
    return frozenset(row if isinstance(row, list | tuple | set | frozenset | np.ndarray) else [row])


def right(prediction: Any, reference: Any) -> float:
    return float(prediction == reference)


def example_f1(prediction: Any, reference: Any) -> float:
    """F1 of the labels of one example; nothing predicted where nothing is true is right."""
    found, true = as_set(prediction), as_set(reference)
    return 2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0


# By label: (n, 3 L), whether each label was predicted and true, predicted, true.


def by_label_sums(predictions: Column, references: Column) -> Any:
    """Sparse, since an example has few of the labels."""
    places: dict[Hashable, int] = {}
    table = [
        [[places.setdefault(label, len(places)) for label in labels] for labels in rows]
        for found, true in _sets(predictions, references)
        for rows in [(found & true, found, true)]
    ]
    known = max(len(places), 1)
    columns = [[known * i + label for i, of in enumerate(row) for label in of] for row in table]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.array([column for row in columns for column in row], dtype=np.int64)
    sparse = library("scipy.sparse")
    return sparse.csr_array((np.ones(len(flat)), flat, ends), shape=(len(table), 3 * known))


def macro_f1_of(totals: np.ndarray) -> np.ndarray:
    both, found, true = np.split(totals, 3, axis=-1)
    return mean_defined(divide(2 * both, found + true))


def mcc_of(totals: np.ndarray) -> np.ndarray:
    both, found, true = np.split(totals, 3, axis=-1)
    n = true.sum(-1)
    covariance = both.sum(-1) * n - (found * true).sum(-1)
    variances = (n**2 - (found**2).sum(-1)) * (n**2 - (true**2).sum(-1))
    return np.where(variances == 0, 0.0, divide(covariance, np.sqrt(variances)))


def count_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, 3): labels predicted and true, predicted, true."""
    rows = [(len(f & t), len(f), len(t)) for f, t in _sets(predictions, references)]
    return np.array(rows, dtype=float)


def micro_f1_of(totals: np.ndarray) -> np.ndarray:
    return divide(2 * totals[..., 0], totals[..., 1] + totals[..., 2])


def _sets(predictions: Column, references: Column) -> list[tuple[frozenset, frozenset]]:
    pairs = zip(predictions, references, strict=True)
    return [(as_set(prediction), as_set(reference)) for prediction, reference in pairs]


# By scikit-learn


def _f1(predictions: Column, references: Column, average: str | None) -> tuple[Any, list[Hashable]]:
    """F1, and the labels. Labels are numbered: ints and strings may stand beside each other."""
    pairs = _sets(predictions, references)
    labels = list(dict.fromkeys(label for pair in pairs for of in pair for label in of))
    number = {label: i for i, label in enumerate(labels)}
    rows = [[[number[label] for label in of] for of in pair] for pair in pairs]
    # Two more that never occur, since scikit-learn takes one column for no table at all.
    binarizer = library("sklearn.preprocessing").MultiLabelBinarizer(
        classes=range(len(labels) + 2), sparse_output=True
    )
    found, true = (binarizer.fit_transform([row[side] for row in rows]) for side in (0, 1))
    score = library("sklearn.metrics").f1_score(true, found, average=average, zero_division=np.nan)
    return score, labels


def by_label(predictions: Column, references: Column) -> dict[Hashable, float]:
    """F1 of each label that occurs, one or several an example."""
    scores, labels = _f1(predictions, references, None)
    return {label: float(score) for label, score in zip(labels, scores, strict=False)}


def _mcc(predictions: Column, references: Column) -> float:
    number: dict[Hashable, int] = {}
    true, found = (
        [number.setdefault(label, len(number)) for label in column]
        for column in (references, predictions)
    )
    return library("sklearn.metrics").matthews_corrcoef(true, found)


# Tags


def _tags(predictions: Column, references: Column) -> tuple[list[list[str]], list[list[str]]]:
    found, true = [list(row) for row in predictions], [list(row) for row in references]
    for i, (one, other) in enumerate(zip(found, true, strict=True)):
        if len(one) != len(other):
            raise InputError(
                f"example {i:,} has {len(one)} predicted tags and {len(other)} true ones: "
                "entities are compared word by word"
            )
    return found, true


def entity_sums(predictions: Column, references: Column) -> np.ndarray:
    """(n, 3): entities predicted and true, predicted, true."""
    entities = library("seqeval.metrics.sequence_labeling").get_entities

    def of(tags: Sequence[str]) -> frozenset:
        return frozenset(entities(list(tags)))

    found, true = _tags(predictions, references)
    rows = [(of(one), of(other)) for one, other in zip(found, true, strict=True)]
    return np.array([(len(f & t), len(f), len(t)) for f, t in rows], dtype=float)


def _entity_f1(predictions: Column, references: Column) -> float:
    found, true = _tags(predictions, references)
    entities = library("seqeval.metrics.sequence_labeling").get_entities
    if not entities(true) and not entities(found):
        return np.nan  # where seqeval warns, and gives a zero
    return library("seqeval.metrics").f1_score(true, found)


def entity_f1_of_one(prediction: Any, reference: Any) -> float:
    """Nothing found where there is nothing is right."""
    f1 = float(micro_f1_of(entity_sums([prediction], [reference])[0]))
    return 1.0 if np.isnan(f1) else f1


LABELS = (
    Metric(
        name="accuracy",
        description="the share of examples whose label is right",
        each=right,
        mean=True,
    ),
    Metric(
        name="macro_f1",
        description="mean over labels of F1 (scikit-learn)",
        compute=lambda p, r: _f1(p, r, "macro")[0],
        each=example_f1,
        sums=by_label_sums,
        of=macro_f1_of,
    ),
    Metric(
        name="micro_f1",
        description="F1 of all labels of all examples together (scikit-learn)",
        compute=lambda p, r: _f1(p, r, "micro")[0],
        each=example_f1,
        sums=count_sums,
        of=micro_f1_of,
    ),
    Metric(
        name="mcc",
        description="Matthews's correlation of labels, -1 to 1 (Gorodkin 2004; scikit-learn)",
        compute=_mcc,
        each=right,
        sums=by_label_sums,
        of=mcc_of,
        unit="",
    ),
    Metric(
        name="entity_f1",
        description="micro F1 of entities, type and both ends right (CoNLL 2003; seqeval)",
        compute=_entity_f1,
        each=entity_f1_of_one,
        sums=entity_sums,
        of=micro_f1_of,
    ),
)
