"""Sentence similarity: an encoder whose vectors are close where texts mean the same.

    v = m / |m|,  m the mean of the encoder's last states over a text's tokens
    (Reimers and Gurevych 2019, arXiv:1908.10084)

    pairs, labels    L = mean_i  -log softmax_j(<a_i, p_j> / τ)[i]
    scores           L = log(1 + Σ exp((<a_j, p_j> - <a_i, p_i>) / τ))  over score_i > score_j

The first has as negatives of an anchor a_i the positives p_j of the other pairs of its batch
(Henderson et al. 2017, arXiv:1705.00652; van den Oord et al. 2018, arXiv:1807.03748), but those
that share its label or one of its texts. With labels, a text's positive is another of its label.
The second asks no more than Spearman's correlation, the order of similarities (Su 2022, CoSENT).

The model is the encoder itself: what is trained here is an adapter of it, without a head. Of texts
with labels, the share whose nearest text has the same label is the hit rate at 1, which work on
metric learning calls recall at 1.

    trimtab tune --task sentence-similarity --model minilm --data pairs.jsonl --out runs/pairs

of lines {"anchor": "How do I pay?", "positive": "Ways of payment"}; with `--task-arg kind=score` a
"score" besides, with `--task-arg kind=label` a "text" and its "label" instead.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.data import Column
from trimtab.tasks import models
from trimtab.tasks.task import Batch, Encoded, Example, Outputs, Task, shortest_first
from trimtab.tasks.tokens import padded, tokenise

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["pair", "score", "label"]
_ANCHOR = Column("anchor", ("sentence1", "query", "question", "text1", "premise", "text"))
_POSITIVE = Column("positive", ("sentence2", "answer", "document", "text2", "hypothesis", "pair"))
_SCORE = Column("score", ("similarity", "similarity_score", "label"), kind="number")
_TEXT = Column("text", ("sentence", "content", "utterance", "query", "question"))
_LABEL = Column("label", ("labels", "category", "class", "intent", "topic"), kind="label")
_COLUMNS: dict[Kind, tuple[Column, ...]] = {
    "pair": (_ANCHOR, _POSITIVE),
    "score": (_ANCHOR, _POSITIVE, _SCORE),
    "label": (_TEXT, _LABEL),
}
_AT_ONCE = 1024  # rows whose similarities with all are computed together


@dataclass(frozen=True, kw_only=True)
class SentenceSimilarity(Task):
    """`kind`: pairs, pairs with a score, or texts with a label; `temperature` is τ."""

    kind: Kind = "pair"
    temperature: float = 0.05

    name: ClassVar[str] = "sentence-similarity"
    by_token: ClassVar[bool] = True  # pairs are compared with all of their batch: no parts

    def __post_init__(self) -> None:
        if self.kind not in _COLUMNS:
            raise InputError(
                f"sentence-similarity: kind is pair, score or label, not {self.kind!r}"
            )
        τ = self.temperature
        if isinstance(τ, bool) or not isinstance(τ, int | float) or not τ > 0:
            raise InputError(f"sentence-similarity: temperature is above 0, not {τ!r}")

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        return _COLUMNS[self.kind]

    @property
    def given(self) -> tuple[str, ...]:
        return ("text",) if self.kind == "label" else ("anchor", "positive")

    @property
    def metrics(self) -> tuple[str, ...]:
        by_kind: dict[Kind, tuple[str, ...]] = {
            "pair": ("recall_at_1", "recall_at_10", "mrr"),
            "score": ("spearman", "pearson"),
            "label": ("hit_rate_at_1", "mrr"),
        }
        return by_kind[self.kind]

    def processor(self, model: str) -> Any:
        return models.load_tokenizer(model)

    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        config = models.configuration(name)
        auto = "AutoModelForTextEncoding" if config.is_encoder_decoder else "AutoModel"
        model, fresh = models.load_model(auto, name, config, dtype, dropout=dropout)
        if any(key.startswith("pooler.") for key in fresh):
            model.pooler = None  # no checkpoint filled it, and nothing here would read it
        return model, [key for key in fresh if not key.startswith("pooler.")]

    def width(self, name: str) -> int:
        return models.hidden_width(name)

    def lengths(self, rows: Dataset, processor: Any) -> list[int]:
        texts = [text for name in self.given for text in rows[name]]
        return [example["length"] for example in tokenise(processor, texts, None, 10**9)[0]]

    def limit(self, model: Any, processor: Any) -> int:
        return models.position_limit(model.config, processor)

    def encode(
        self, rows: Dataset, processor: Any, labels: Sequence[str] | None, max_length: int
    ) -> Encoded:
        """An example is a text, and with it that of the pair; or, of texts with labels, another of
        its label, which the loss is computed with."""
        parts = [tokenise(processor, list(rows[name]), None, max_length) for name in self.given]
        (examples, _), truncated = parts[0], sum(cut for _, cut in parts)
        if self.kind != "label":
            _join(examples, parts[1][0])
        elif labels is not None:
            tokens = [dict(example) for example in examples]
            _join(examples, [tokens[i] for i in partners(rows["label"])])
        if labels is not None:
            for example, target in zip(examples, self._targets(rows), strict=True):
                example["labels"] = target
        return shortest_first(examples, truncated)

    def _targets(self, rows: Dataset) -> list[Any]:
        """A score, or two numbers, one of which it shares with what is no negative of it."""
        if self.kind == "score":
            return [float(score) for score in rows["score"]]
        names = ("label", "label") if self.kind == "label" else self.given
        return list(zip(*(_numbered(rows[name]) for name in names), strict=True))

    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """(texts, longest): token ids and mask, the anchors before the positives; `labels` (batch,)
        or (batch, 2)."""
        positives = [example["positive"] for example in examples if "positive" in example]
        batch = padded([*examples, *positives], processor)
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        vectors, labels = embed(model, batch), batch["labels"]
        compared = in_order if self.kind == "score" else contrastive
        return compared(*vectors.chunk(2), labels, self.temperature), vectors

    def rows_of(self, outputs: Any, batch: Batch) -> Outputs:
        """(batch, width), of pairs (batch, 2, width)."""
        anchors = outputs.float().cpu().numpy()
        if self.kind != "label":
            return anchors.reshape(2, -1, anchors.shape[-1]).swapaxes(0, 1)
        return anchors[: len(batch.get("labels", anchors))]

    def ask(self, model: Any, batch: Batch, processor: Any) -> Outputs:
        if self.kind == "label" and "labels" in batch:  # nobody asks for the positives
            batch = {key: x[: len(batch["labels"])] for key, x in batch.items()}
        return self.rows_of(embed(model, batch), batch)

    def answers(
        self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any
    ) -> list[Any]:
        """A similarity; or the rank of an anchor's positive among those of all rows; or the best
        rank of a text's label among all other texts."""
        if self.kind == "score":
            return _similarities(outputs)
        if self.kind == "label":
            return label_ranks(outputs, list(rows["label"]))
        return pair_ranks(outputs, list(rows["anchor"]), list(rows["positive"]))

    def references(self, rows: Dataset, labels: Sequence[str]) -> list[Any]:
        if self.kind == "score":
            return [float(score) for score in rows["score"]]
        return list(rows["label" if self.kind == "label" else "positive"])

    def told(self, outputs: Outputs, rows: Dataset, labels: Sequence[str], processor: Any) -> list:
        columns = [rows[name] for name in self.given]
        given = [dict(zip(self.given, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.kind == "label":
            return [
                {**row, "embedding": [round(float(x), 6) for x in vector]}
                for row, vector in zip(given, outputs, strict=True)
            ]
        return [
            {**row, "similarity": round(one, 6)}
            for row, one in zip(given, _similarities(outputs), strict=True)
        ]


def embed(model: Any, batch: Batch) -> Tensor:
    """(texts, width): means over tokens, of length 1, in fp32."""
    inputs = {key: x for key, x in batch.items() if key != "labels"}
    states = model(**inputs).last_hidden_state.float()
    return F.normalize(mean(states, batch["attention_mask"]), dim=-1)


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """Of states (texts, length, width) where the mask (texts, length) is 1."""
    weights = mask[..., None].to(states)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def contrastive(anchors: Tensor, positives: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Of vectors (batch, width); a pair is no negative of one that shares a column of `labels`
    (batch, 2)."""
    similar = anchors @ positives.T / temperature
    shared = (labels[:, None] == labels[None]).any(-1)
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similar = similar.masked_fill(shared & ~own, -torch.inf)
    return F.cross_entropy(similar, torch.arange(len(labels), device=labels.device))


def in_order(anchors: Tensor, positives: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Of vectors (batch, width) and scores (batch)."""
    similar = (anchors * positives).sum(-1) / temperature
    wrong = similar[None, :] - similar[:, None]  # (i, j): by how much j is nearer than i
    wrong = wrong.masked_fill(scores[:, None] <= scores[None, :], -torch.inf)
    return F.pad(wrong.flatten(), (1, 0)).logsumexp(0)


def partners(labels: Iterable[str]) -> list[int]:
    """For each row another of its label, drawn once: the next in a random circle of them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    if all(len(group) == 1 for group in groups.values()):
        raise InputError(
            f"no label occurs twice in {len(groups)} rows: texts are compared with others of "
            "their label"
        )
    found, rng = [0] * sum(map(len, groups.values())), random.Random(0)
    for label in sorted(groups):
        circle = groups[label]
        rng.shuffle(circle)
        for i, other in zip(circle, [*circle[1:], circle[0]], strict=True):
            found[i] = other
    return found


def pair_ranks(vectors: np.ndarray, anchors: list[str], positives: list[str]) -> list[int]:
    """Of vectors (rows, 2, width): the rank of each positive among all different ones, but for the
    others of the same anchor."""
    own, groups = _numbered(positives), _numbered(anchors)
    first = np.unique(own, return_index=True)[1]
    right: dict[int, set[int]] = defaultdict(set)
    for group, one in zip(groups, own, strict=True):
        right[group].add(one)
    ranks = []
    for i, similar in _similar(vectors[:, 0], vectors[first, 1]):
        nearer = similar > similar[own[i]]
        nearer[list(right[groups[i]])] = False
        ranks.append(1 + int(nearer.sum()))
    return ranks


def label_ranks(vectors: np.ndarray, labels: list[str]) -> list[list[int]]:
    """Of vectors (rows, width): the rank of the nearest other row of the same label, none where
    there is none."""
    numbers = np.array(_numbered(labels))
    ranks = []
    for i, similar in _similar(vectors, vectors):
        same = numbers == numbers[i]
        same[i] = False
        others = numbers != numbers[i]
        best = similar[same].max(initial=-np.inf)
        ranks.append([1 + int((similar[others] > best).sum())] if same.any() else [])
    return ranks


def _similar(vectors: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each row's place, and its similarities with all others, some rows computed together."""
    for at in range(0, len(vectors), _AT_ONCE):
        yield from enumerate(vectors[at : at + _AT_ONCE] @ others.T, start=at)


def _similarities(outputs: np.ndarray) -> list[float]:
    return [float(one) for one in (outputs[:, 0] * outputs[:, 1]).sum(-1)]


def _join(examples: list[Example], positives: Sequence[Example]) -> None:
    for example, positive in zip(examples, positives, strict=True):
        example["positive"] = positive
        example["length"] = max(example["length"], positive["length"])


def _numbered(values: Iterable[str]) -> list[int]:
    """A number for each value, the same for the same."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
