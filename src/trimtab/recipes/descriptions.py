"""Words that describe classes, found from a few examples: by their topics, and by what a language
model would answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.recipes.choices import IGNORED, Example, encode, logits
from trimtab.recipes.retrieval import Embed

_WORD = re.compile(r"[^\W\d_]{2,}")
_STOPWORDS = """
    a about after all also am an and any are as at be because been before being but by can could
    did do does doing down each few for from had has have having he her here him his how if in
    into is it its just me more most my of off on once only or other our out over own same she
    should so some such than that the their them then there these they this those through to too
    under until up us very was we were what when where which while who whom why will with would
    you your
"""
STOPWORDS = frozenset(_STOPWORDS.split())
"""English words that describe nothing."""


def topic_words(
    texts: Sequence[str], labels: Sequence[int], classes: int, embed: Embed, top: int = 10
) -> list[str]:
    """For each class the word of its own texts that is nearest to them, and among the `top` nearest
    of no other class."""
    vectors, of = embed(texts), torch.tensor(labels)
    ranked: list[list[str]] = []
    for one in range(classes):
        own = [text for text, label in zip(texts, labels, strict=True) if label == one]
        words = sorted({w for text in own for w in _WORD.findall(text.lower())} - STOPWORDS)
        if not words:
            ranked.append([])
            continue
        near = (embed(words) @ vectors[of == one].T).mean(1)
        ranked.append([words[i] for i in near.argsort(descending=True, stable=True).tolist()])
    chosen: list[str] = []
    for one, words in enumerate(ranked):
        others = {w for i, rest in enumerate(ranked) if i != one for w in rest[:top]}
        fitting = [w for w in words[:top] if w not in others] or words
        chosen.append(next((w for w in fitting if w not in chosen), f"class {one + 1}"))
    return chosen


@torch.no_grad()
def answer_words(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    labels: Sequence[int],
    classes: int,
    *,
    top: int = 10,
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[str]:
    """For each class the first word of an answer that the model gives its prompts with a higher
    probability than those of all classes, on average; no word twice.

    Of the `top` words of each class, the one with the greatest difference is given first.
    """
    training, found = model.training, []
    model.eval()
    try:
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            found.append(_first(model, tokenizer, some, max_length))
    finally:
        model.train(training)
    every, of = torch.cat(found), torch.tensor(labels)
    means = torch.stack([every[of == one].mean(0) for one in range(classes)])
    differences = means - means.mean(0)
    pairs = sorted(
        (-value, one, word)
        for one in range(classes)
        for value, word in _words(tokenizer, differences[one], top)
    )
    chosen: dict[int, str] = {}
    for _, one, word in pairs:
        if one not in chosen and word not in chosen.values():
            chosen[one] = word
    return [chosen.get(one, f"class {one + 1}") for one in range(classes)]


def _first(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_length: int | None
) -> Tensor:
    """The probabilities of an answer's first token, (n, vocabulary): where that of some answer
    stands, behind what the model's tokenizer puts before every answer."""
    batch = encode(model, tokenizer, [Example(one, ("yes",)) for one in prompts], max_length)
    batch = batch.to(next(model.parameters()).device)
    before = {IGNORED, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    labels = batch.labels[:, 0]
    at = (~torch.isin(labels, labels.new_tensor(sorted(before)))).int().argmax(-1)
    rows = torch.arange(len(at), device=at.device)
    return logits(model, batch)[:, 0][rows, at].float().softmax(-1).cpu()


def _words(tokenizer: Any, values: Tensor, top: int) -> list[tuple[float, str]]:
    """The `top` tokens that are words."""
    found: list[tuple[float, str]] = []
    for i in values.argsort(descending=True).tolist():
        word = tokenizer.decode([i]).strip()
        if i not in tokenizer.all_special_ids and _WORD.fullmatch(word):
            if word.lower() not in STOPWORDS:
                found.append((float(values[i]), word))
            if len(found) == top:
                break
    return found
