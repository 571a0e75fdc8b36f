"""AuT-Few: Automated Few-shot Classification with Instruction-Finetuned Language Models.
Aly et al. 2023, arXiv:2305.12576.

    instructions:  the R nearest of a collection with as many fields as the task, by the cosine of
                   sentence embeddings to that of the fields' names, or of the examples
    descriptions:  the classes' names; topic words of their examples, by the same; words that the
                   model itself answers with, more for one class than for all. One of these sets is
                   chosen by cross-validation
    training:      T-Few on every example under every instruction
    prediction:    each instruction votes by rank classification

Nothing is written by hand for a task but its classes' names, and those may be left out.

Where this is not the paper's: the collection is small and in words of our own in place of the
prompts that a model was instruction-tuned on; words of the model are told apart by probabilities
and given to classes one by one, the clearest first, in place of searching all assignments; folds
are stratified, and ties of accuracy go to the higher likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import attach, detach
from trimtab.adapt import admit
from trimtab.core import registry
from trimtab.core.errors import InputError
from trimtab.core.method import Method
from trimtab.recipes import RECIPES, t_few
from trimtab.recipes.choices import Example
from trimtab.recipes.descriptions import answer_words, topic_words
from trimtab.recipes.retrieval import COLLECTION, Embed, Row, minilm, retrieve

_FOLD = "aut-few-fold"


class Trial(NamedTuple):
    """What held-out examples say of a set of descriptions: accuracy, then mean log-likelihood."""

    accuracy: float
    likelihood: float


@dataclass(frozen=True)
class Classifier:
    """A trained model with its instructions and the descriptions of its classes; `tried` tells how
    each set of descriptions did in cross-validation."""

    model: nn.Module
    tokenizer: Any
    instructions: tuple[str, ...]
    descriptions: tuple[str, ...]
    tried: Mapping[str, Trial]
    max_length: int | None = None

    def predict(self, texts: Sequence[str | Sequence[str]]) -> list[int]:
        """The class of each text: what most instructions say; of a tie, the more probable."""
        return _most(*poll(self.scores(texts))).tolist()

    def scores(self, texts: Sequence[str | Sequence[str]]) -> Tensor:
        """What rank classification compares, (n, instructions, classes)."""
        asked = ask(rows_of(texts), self.instructions, self.descriptions)
        found = t_few.scores(self.model, self.tokenizer, asked, max_length=self.max_length)
        return found.unflatten(0, (-1, len(self.instructions)))


def poll(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores (n, instructions, classes): how many instructions say each class, and its
    probability on their average, (n, classes)."""
    said = F.one_hot(scores.argmax(-1), scores.shape[-1]).sum(1)
    return said, scores.softmax(-1).mean(1)


def _most(votes: Tensor, probabilities: Tensor) -> Tensor:
    return (votes + 0.5 * probabilities).argmax(-1)


def fit(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str | Sequence[str]],
    labels: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    fields: Sequence[str] | None = None,
    method: Method | None = None,
    embed: Embed | None = None,
    collection: Sequence[str] = COLLECTION,
    top: int = 5,
    folds: int = 3,
    name: str = "aut-few",
    seed: int = 0,
    max_length: int | None = None,
    **training: Any,
) -> Classifier:
    """Find instructions and descriptions, attach a method under `name`, and train it.

    Args:
        texts: a text, or several fields, an example.
        labels: the class of each, from 0.
        names: the classes' names; left out, found descriptions alone are tried.
        fields: what the fields are called, where that tells something of the task.
        method: IA³, if left out.
        embed: texts to vectors; left out, by MiniLM, which the demo extra brings.
        top: how many instructions.
        training: what `t_few.train` takes: steps, batch_size, lr, warmup; folds train alike.
    """
    admit(model, name)
    if top < 1:
        raise InputError(f"top, how many instructions, is at least 1, not {top}")
    rows, classes = rows_of(texts), _classes(texts, labels, names)
    parts = split(labels, folds, seed)
    embed = embed or minilm()
    instructions = tuple(retrieve(rows, embed, fields=fields, collection=collection, top=top))
    candidates = _candidates(
        model, tokenizer, rows, labels, classes, instructions, embed, max_length
    )
    if names is not None:
        candidates = {"names": tuple(names), **candidates}
    method = method or registry.build(RECIPES["aut-few"].method or "", {})
    options = {**training, "seed": seed, "max_length": max_length}

    def trained(chosen: Sequence[int], described: Sequence[str], under: str) -> Classifier:
        given = ask([rows[i] for i in chosen], instructions, described, [labels[i] for i in chosen])
        torch.manual_seed(seed)
        attach(model, method, name=under)
        try:
            t_few.train(model, tokenizer, given, **options)
        except BaseException:
            detach(model, under)
            raise
        return Classifier(model, tokenizer, instructions, tuple(described), tried, max_length)

    tried: dict[str, Trial] = {}
    for kind, described in candidates.items():
        right, logs = torch.zeros(len(rows)), torch.zeros(len(rows))
        for part in parts:
            rest = [i for i in range(len(rows)) if i not in part]
            votes, likely = poll(trained(rest, described, _FOLD).scores([rows[i] for i in part]))
            detach(model, _FOLD)
            truth = torch.tensor([labels[i] for i in part])
            right[part] = (_most(votes, likely) == truth).float()
            logs[part] = likely.gather(1, truth[:, None])[:, 0].clamp(min=1e-30).log()
        tried[kind] = Trial(right.mean().item(), logs.mean().item())
    best = max(tried, key=lambda kind: tried[kind])
    return trained(range(len(rows)), candidates[best], name)


def _candidates(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    labels: Sequence[int],
    classes: int,
    instructions: Sequence[str],
    embed: Embed,
    max_length: int | None,
) -> dict[str, tuple[str, ...]]:
    """The descriptions that are found."""
    prompts = [example.text for example in ask(rows, instructions, ("yes",))]
    every = [label for label in labels for _ in instructions]
    said = answer_words(model, tokenizer, prompts, every, classes, max_length=max_length)
    about = topic_words([" ".join(row) for row in rows], labels, classes, embed)
    return {"topics": tuple(about), "answers": tuple(said)}


def ask(
    rows: Sequence[Row],
    instructions: Sequence[str],
    descriptions: Sequence[str],
    labels: Sequence[int] | None = None,
) -> list[Example]:
    """Every row under every instruction, a row's together; the classes are the choices."""
    known = [None] * len(rows) if labels is None else labels
    return [
        Example(instruction.format(*row), tuple(descriptions), label)
        for row, label in zip(rows, known, strict=True)
        for instruction in instructions
    ]


def rows_of(texts: Sequence[str | Sequence[str]]) -> list[Row]:
    """Examples as tuples of fields, all with as many."""
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if len({len(row) for row in rows}) != 1:
        raise InputError("there must be examples, and all must have the same fields")
    return rows


def split(labels: Sequence[int], folds: int, seed: int) -> list[list[int]]:
    """The examples' indices in `folds` parts, each class spread evenly over them."""
    if not 2 <= folds <= len(labels):
        raise InputError(f"folds are from 2 to the {len(labels)} examples, not {folds}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    dealt = sorted(order, key=lambda i: labels[i])
    return [dealt[part::folds] for part in range(folds)]


def _classes(texts: Sequence[Any], labels: Sequence[int], names: Sequence[str] | None) -> int:
    """How many there are."""
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts and {len(labels)} labels")
    if odd := [label for label in labels if not isinstance(label, Integral)]:
        raise InputError(f"a label is its class's number, from 0, and not {odd[0]!r}")
    classes = max(labels, default=0) + 1 if names is None else len(names)
    if missing := sorted(set(range(classes)) - set(labels)):
        raise InputError(f"class {missing[0]} of {classes} has no example")
    if classes < 2 or not set(labels) <= set(range(classes)):
        raise InputError(f"labels count from 0, over at least two classes, not {set(labels)}")
    if names is not None and len(set(names)) < classes:
        raise InputError(f"two classes have the same name: {list(names)}")
    return classes
