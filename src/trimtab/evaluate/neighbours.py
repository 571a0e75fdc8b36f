"""Nearest neighbours in embedding space: what an encoder knows of a task without any training.

    ŷ(x) = argmax over labels c of  Σ over the k training vectors nearest to h(x) of  sim · [y = c]

by cosine, as in k-nearest-neighbour evaluation of encoders (Wu et al. 2018, arXiv:1805.01978), and
word by word for tags (NNShot; Yang and Katiyar 2020, arXiv:2010.02405). How vectors are pooled, and
k, are chosen on the validation split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.evaluate.metrics import METRICS
from trimtab.evaluate.vectors import Vectors, parted, vectors

if TYPE_CHECKING:
    from trimtab.tasks.task import Encoded
    from trimtab.tune.session import Session

COUNTS = (1, 3, 5, 10, 20, 50)
"""Of neighbours, from which validation chooses."""
_MOST = 20_000  # training vectors that are searched, drawn of more
_AT_ONCE = 1024


@dataclass(frozen=True)
class Found:
    """The answers of the neighbours chosen on validation."""

    k: int
    pooling: str
    searched: int
    width: int
    validation: list[Any]
    test: list[Any]


def search(session: Session, splits: Mapping[str, Any]) -> Found:
    """Label `validation` and `test` by their neighbours in `train`; each a dataset of rows."""
    encoded = {split: session.encode(rows) for split, rows in splits.items()}
    made = {split: vectors(session, one) for split, one in encoded.items()}
    train, labels = _searched(made["train"], session.config.seed), len(session.labels)
    metric, references = METRICS[session.task.metric], session.references(splits["validation"])
    tried = []
    for pooling in train.by:
        near = _nearest(train, made["validation"], pooling)
        for k in COUNTS:
            if k > near.indices.shape[1]:
                continue
            votes = _votes(near, train.labels, k, labels)
            answers = _answers(session, encoded["validation"], made["validation"], votes,
                               splits["validation"])  # fmt: skip
            value = metric.value(answers, references)
            tried.append((value if metric.higher else -value, -k, pooling, answers))
    _, less_k, pooling, held_out = max(tried, key=lambda one: one[:2])
    near = _nearest(train, made["test"], pooling)
    votes = _votes(near, train.labels, -less_k, labels)
    answers = _answers(session, encoded["test"], made["test"], votes, splits["test"])
    searched = len(train.labels)
    return Found(-less_k, pooling, searched, train.by[pooling].shape[1], held_out, answers)


def _searched(train: Vectors, seed: int) -> Vectors:
    """They come in order of their examples' length: the first of them would be of the shortest."""
    if len(train.labels) <= _MOST:
        return train
    drawn = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    at = drawn[:_MOST].sort().values
    return replace(train, by={name: one[at] for name, one in train.by.items()},
                   labels=train.labels[at])  # fmt: skip


@dataclass(frozen=True)
class _Near:
    """(m, K) of each vector: its nearest training vectors, the nearest first, and how near."""

    indices: Tensor
    similar: Tensor


def _nearest(train: Vectors, asked: Vectors, pooling: str) -> _Near:
    known = F.normalize(train.by[pooling], dim=-1)
    most = min(max(COUNTS), len(known))
    found = [
        (F.normalize(part, dim=-1) @ known.T).topk(most, dim=-1)
        for part in asked.by[pooling].split(_AT_ONCE)
    ]
    return _Near(
        torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])
    )


def _votes(near: _Near, labels: Tensor, k: int, count: int) -> Tensor:
    """(m, count): the summed similarity of the k nearest with each label."""
    votes = torch.zeros(len(near.indices), count)
    weights = near.similar[:, :k].clamp(min=0) + 1e-6
    return votes.scatter_add(1, labels[near.indices[:, :k]], weights)


def _answers(
    session: Session, encoded: Encoded, asked: Vectors, votes: Tensor, rows: Any
) -> list[Any]:
    """As the task reads them from its model: scores of labels, or the best label of each word."""
    if session.task.one_vector:
        outputs: Any = encoded.restore(votes.numpy())
    else:
        best = parted(votes.argmax(-1), asked.counts)
        outputs = encoded.restore(
            [_by_word(one.numpy(), example["words"])
             for one, example in zip(best, encoded.examples, strict=True)]
        )  # fmt: skip
    return session.answers(outputs, rows)


def _by_word(best: np.ndarray, words: list[int]) -> np.ndarray:
    """The best label in the place of its word; -1 for a word without a token."""
    begun = [word for word in words if word >= 0]
    out = np.full(max(begun, default=-1) + 1, -1)
    out[begun] = best
    return out
