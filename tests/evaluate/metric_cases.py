"""What each metric takes: predictions and references, drawn at random and at the edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Columns = tuple[list[Any], list[Any]]

LABELS = ["cat", "dog", 3, "eel"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept.", "Dogs", "ran,", "far"]
TAGS = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def one_label(rng: np.random.Generator, n: int) -> Columns:
    true = [LABELS[i] for i in rng.integers(4, size=n)]
    return [t if rng.random() < 0.6 else LABELS[rng.integers(4)] for t in true], true


def labels(rng: np.random.Generator, n: int) -> Columns:
    def row() -> list[Any]:
        return [label for label in LABELS if rng.random() < 0.4]

    return [row() for _ in range(n)], [row() for _ in range(n)]


def numbers(rng: np.random.Generator, n: int) -> Columns:
    true = 1e4 + rng.normal(size=n)
    return (true + rng.normal(size=n) / 2).tolist(), true.tolist()


def tags(rng: np.random.Generator, n: int) -> Columns:
    def row(size: int) -> list[str]:
        return [TAGS[i] for i in rng.integers(len(TAGS), size=size)]

    true = [row(rng.integers(0, 9)) for _ in range(n)]
    return [t if rng.random() < 0.5 else row(len(t)) for t in true], true


def _sentence(rng: np.random.Generator, least: int = 0) -> str:
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(least, 9)))


def texts(rng: np.random.Generator, n: int) -> Columns:
    """Some alike, some against several references."""
    true = [_sentence(rng, 3) for _ in range(n)]
    found = [t if rng.random() < 0.4 else f"{t[:9]}{_sentence(rng)}" for t in true]
    return found, [[t, _sentence(rng)] if rng.random() < 0.3 else t for t in true]


def spoken(rng: np.random.Generator, n: int) -> Columns:
    return [_sentence(rng) for _ in range(n)], [_sentence(rng) for _ in range(n)]


def phonemes(rng: np.random.Generator, n: int) -> Columns:
    found, true = spoken(rng, n)
    return [one.split() for one in found], true


def losses(rng: np.random.Generator, n: int) -> Columns:
    tokens = rng.integers(1, 50, size=n)
    return [(float(t * rng.random()), int(t)) for t in tokens], [None] * n


def two_margins(rng: np.random.Generator, n: int) -> Columns:
    return [tuple(row) for row in rng.normal(size=(n, 2))], [None] * n


def one_number(rng: np.random.Generator, n: int) -> Columns:
    return rng.normal(size=n).tolist(), [None] * n


def forecasts(rng: np.random.Generator, n: int) -> Columns:
    actual = rng.normal(size=(n, 5))
    scales = rng.choice([0.0, 0.5, 2.0], size=n)  # of which 0: a history that never changed
    return list(actual + rng.normal(size=(n, 5))), list(zip(actual, scales, strict=True))


def ranked(rng: np.random.Generator, n: int) -> Columns:
    def one() -> Any:
        m = int(rng.integers(0, 4))
        return int(rng.integers(1, 15)) if m == 1 else rng.permutation(14)[:m] + 1

    return [one() for _ in range(n)], [None] * n


def both_ways(rng: np.random.Generator, n: int) -> Columns:
    ranks = rng.integers(1, 15, (n, 2)).tolist()
    return [{"image_to_text": one, "text_to_image": other} for one, other in ranks], [None] * n


def scored(rng: np.random.Generator, n: int) -> Columns:
    true = rng.random(n) < 0.4
    return np.round(true + rng.normal(size=n), 1).tolist(), true.tolist()


def assays(rng: np.random.Generator, n: int) -> Columns:
    true = rng.choice([0.0, 1.0, np.nan], size=(n, 3), p=[0.5, 0.3, 0.2])
    return np.round(np.nan_to_num(true) + rng.normal(size=true.shape), 1).tolist(), true.tolist()


def maps(rng: np.random.Generator, n: int) -> Columns:
    true = rng.choice([0, 1, 2, 4, 255], size=(n, 6, 5))
    found = np.where((rng.random(true.shape) < 0.7) & (true != 255), true, 1)
    return list(found), list(true)


def boxes(rng: np.random.Generator, n: int) -> Columns:
    found, true = [], []
    for _ in range(n):
        m = int(rng.integers(0, 4))
        places = np.concatenate([rng.random((m, 2)) * 50, 5 + rng.random((m, 2)) * 20], axis=-1)
        names = [LABELS[i] for i in rng.integers(2, size=m)]
        true.append({"boxes": places.tolist(), "labels": names})
        moved = places + rng.normal(size=(m, 4)) * 0.7
        kept = rng.random(m) < 0.8
        found.append(
            {
                "boxes": moved[kept],
                "scores": rng.random(m)[kept],
                "labels": [name for name, keep in zip(names, kept, strict=True) if keep],
            }
        )
    return found, true


NO_BOX: dict[str, list] = {"boxes": [], "scores": [], "labels": []}
A_BOX = {"boxes": [[1, 2, 9, 9]], "scores": [0.5], "labels": ["cat"]}

WAYS = ("image_to_text", "text_to_image")
TAKES = {
    **dict.fromkeys(("accuracy", "mcc"), one_label),
    "macro_f1": labels,
    "micro_f1": labels,
    "entity_f1": tags,
    **dict.fromkeys(("pearson", "spearman", "rmse", "mae"), numbers),
    "perplexity": losses,
    **dict.fromkeys(("mase", "forecast_mae"), forecasts),
    **dict.fromkeys(("reward_margin", "reward_accuracy", "denoising_loss"), one_number),
    "action_error": one_number,
    **dict.fromkeys(("likelihood_accuracy", "episode_return"), two_margins),
    **dict.fromkeys(("exact_match", "squad_exact_match", "squad_f1"), texts),
    **dict.fromkeys(("bleu", "chrf", "rouge1", "rouge2", "rougeL"), texts),
    **dict.fromkeys(("word_error_rate", "character_error_rate"), spoken),
    "phoneme_error_rate": phonemes,
    **{f"{name}_at_{k}": ranked for name in ("recall", "hit_rate", "ndcg") for k in (1, 5, 10)},
    **{f"{way}_recall_at_{k}": both_ways for way in WAYS for k in (1, 5, 10)},
    "mrr": ranked,
    **dict.fromkeys(("roc_auc", "average_precision"), scored),
    "macro_roc_auc": assays,
    **dict.fromkeys(("mean_iou", "dice"), maps),
    "mean_average_precision": boxes,
}

_ANSWERS = [(["", ""], ["the", "cat"]), (["", "a"], ["", "a"]), (["cat"], ["cat"])]
_WAYS = ([{"image_to_text": 1, "text_to_image": 1}, dict.fromkeys(WAYS, 11)], [None] * 2, 0.5)
_RANKS = [([1], [None]), ([99, None], [None] * 2), ([[2, 30], [40]], [None] * 2)]

# name -> what is at the edge, with the value: None where it is only to be the library's
EDGES: dict[str, list[tuple[list, list, float | None]]] = {
    "accuracy": [(["a"], ["a"], 1.0), ([1, 2], [2, 1], 0.0)],
    "macro_f1": [
        (["a", "a"], ["a", "a"], 1.0),
        ([1, 1], [2, 2], 0.0),
        ([[], []], [[], []], math.nan),
        ([[], ["a"]], [["a"], ["a"]], 2 / 3),
        (["a", "b", "b"], ["a", "a", "b"], 2 / 3),
    ],
    "micro_f1": [
        ([[], []], [[], []], math.nan),
        ([[]], [["a", "b"]], 0.0),
        ([{"a"}, {"b"}], [["a", "b"], []], 0.5),
    ],
    "mcc": [
        (["a", "a"], ["a", "b"], 0.0),
        (["a", "a"], ["a", "a"], 0.0),
        ([0, 1], [0, 1], 1.0),
        ([1, 0], [0, 1], -1.0),
    ],
    "entity_f1": [
        ([["O", "O"]], [["O", "O"]], math.nan),
        ([[]], [[]], math.nan),
        ([["O", "O"]], [["B-X", "O"]], 0.0),
        ([["I-X", "I-X"], ["B-X"]], [["B-X", "I-X"], ["B-X"]], 1.0),
        ([["X", "what"]], [["B-X", "O"]], None),
    ],
    "pearson": [
        ([0.1] * 7, [1, 2, 3, 4, 5, 6, 7], math.nan),
        ([1, 2, 3], [0.3] * 3, math.nan),
        ([1.0], [2.0], math.nan),
        ([math.nan, 1], [1, 2], math.nan),
        ([1e8, 1e8 + 1, 1e8 + 2], [3, 2, 1], -1.0),
    ],
    "spearman": [([0.1] * 3, [1, 2, 3], math.nan), ([1.0], [1.0], math.nan)],
    "rmse": [([1.0], [3.0], 2.0), ([math.nan, 1], [1, 1], math.nan), ([1, 2], [1, 2], 0.0)],
    "mae": [([1.0, 2.0], [3.0, 2.0], 1.0), ([math.nan, 1], [1, 1], math.nan)],
    "perplexity": [
        ([(0.0, 5)], [None], 1.0),
        ([(0.0, 0)], [None], math.nan),
        ([(math.log(4) * 3, 3), (0, 0)], [None] * 2, 4.0),
        ([(1e6, 1)], [None], math.inf),
    ],
    "mase": [
        ([[1.0, 2.0]], [([2.0, 4.0], 0.5)], 3.0),
        ([[1.0]], [([2.0], 0.0)], math.nan),
        ([[1.0, 9.0]], [([2.0, math.nan], 1.0)], 1.0),
        ([[math.nan]], [([2.0], 1.0)], math.inf),
    ],
    "forecast_mae": [
        ([[1.0, 2.0]], [([2.0, 4.0], 0.5)], 1.5),
        ([[1.0, 9.0]], [([2.0, math.nan], 0.0)], 1.0),
    ],
    "reward_margin": [([-1.0, 2.0], [None] * 2, 0.5), ([math.nan], [None], math.nan)],
    "reward_accuracy": [([-1.0, 0.0, 2.0], [None] * 3, 1 / 2)],
    "likelihood_accuracy": [([(9.0, -1.0), (-9.0, 0.0), (0.0, 2.0)], [None] * 3, 1 / 2)],
    "action_error": [([0.5, (1.5, 9.0)], [2.0, 2.0], 1.0)],
    "episode_return": [([(0.5, -3.0), (1.5, 9.0)], [2.0, 2.0], 3.0)],
    "denoising_loss": [([0.25, 0.75], [None] * 2, 0.5)],
    "exact_match": [([" cat", "-5"], ["cat", "5"], 0.5), (["b"], [["a", "b"]], 1.0)],
    "squad_exact_match": [(["The cat!", ""], ["cat", []], 1.0), (["a cat"], [[""]], 0.0)],
    "squad_f1": [(["the black cat"], [["dog", "black dog"]], 0.5), (["", "x"], [[], []], 0.5)],
    **{
        name: [(p, r, None) for p, r in _ANSWERS]
        for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
    },
    **{
        name: [
            ([""], [""], math.nan),
            (["a b"], [""], math.nan),
            ([""], ["a b"], 1.0),
            (["", "c"], ["", "c"], 1 - 1),
        ]
        for name in ("word_error_rate", "phoneme_error_rate", "character_error_rate")
    },
    **{
        f"{name}_at_{k}": [
            *((p, r, None) for p, r in _RANKS),
            ([[]], [None], math.nan),
            ([[], 1], [None] * 2, 1.0),
        ]
        for name in ("recall", "hit_rate", "ndcg")
        for k in (1, 5, 10)
    },
    **{f"{way}_recall_at_{k}": [_WAYS] for way in WAYS for k in (1, 5, 10)},
    "mrr": [([2, None], [None] * 2, 0.25), ([[]], [None], math.nan)],
    "roc_auc": [
        ([0.1, 0.2], [1, 1], math.nan),
        ([0.1, 0.2], [0, 0], math.nan),
        ([0.5, 0.5], [0, 1], 0.5),
        ([math.nan, 0.5], [0, 1], math.nan),
    ],
    "macro_roc_auc": [
        ([[0.1, 0.9], [0.2, 0.1]], [[0, math.nan], [1, 0]], 1.0),
        ([[0.1], [0.2], [0.3]], [[1], [math.nan], [0]], 0.0),
        ([[0.1, math.nan], [0.2, 0.1]], [[0, 1], [1, 0]], 1.0),
        ([[0.1]], [[1]], math.nan),
    ],
    "average_precision": [([0.1, 0.2], [0, 0], math.nan), ([0.1, 0.2], [1, 1], 1.0)],
    "mean_iou": [
        ([np.full((2, 2), 1)], [np.full((2, 2), 255)], math.nan),
        ([np.array([[0, 1]])], [np.array([[0, 0]])], 0.25),
        ([np.array([0, 7])], [np.array([0, -1])], 1.0),
    ],
    "dice": [
        ([np.full((2, 2), 1)], [np.full((2, 2), 255)], math.nan),
        ([np.array([[0, 1]])], [np.array([[0, 0]])], 1 / 3),
    ],
    "mean_average_precision": [
        ([NO_BOX], [NO_BOX], math.nan),
        ([A_BOX], [NO_BOX], math.nan),
        ([NO_BOX], [A_BOX], 0.0),
        ([A_BOX, NO_BOX], [A_BOX, NO_BOX], 1.0),
    ],
}
