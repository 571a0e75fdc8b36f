"""Answer choices under a language model: how they are encoded, and the logits of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trimtab.core.adapter import unwrap
from trimtab.core.errors import InputError
from trimtab.tasks.models import position_limit

IGNORED = -100
"""The label of a position that is scored by nobody."""


@dataclass(frozen=True)
class Example:
    """A text, what may be answered, and the index of the right answer (None: not known)."""

    text: str
    choices: tuple[str, ...]
    answer: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices or not all(self.choices):
            raise InputError(f"an example needs choices, none of them empty, not {self.choices!r}")
        if self.answer is not None and not 0 <= self.answer < len(self.choices):
            raise InputError(f"answer {self.answer} is none of the {len(self.choices)} choices")


@dataclass(frozen=True)
class Batch:
    """`n` texts with `c` choices each, as tensors.

    `labels` (n, c, t) are the tokens of the choices, and `IGNORED` elsewhere: behind a choice's
    end, before its beginning, and all along where an example has fewer choices than others.
    An encoder-decoder reads `inputs` (n, s); a decoder reads text and choice at once (n, c, t).
    """

    inputs: Tensor
    mask: Tensor
    labels: Tensor
    answers: Tensor | None

    def to(self, device: torch.device) -> Batch:
        answers = None if self.answers is None else self.answers.to(device)
        return Batch(self.inputs.to(device), self.mask.to(device), self.labels.to(device), answers)


def encode(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> Batch:
    """The examples as one batch for this model.

    Args:
        max_length: texts are cut to so many tokens: for an encoder at their end, for a decoder at
            their beginning, and there the choice counts as well. Left out, one that is longer than
            the model's positions is an error.
    """
    limit = max_length or position_limit(unwrap(model).config, tokenizer)
    if _encodes(model):
        cut: dict[str, Any] = {"truncation": True, "max_length": max_length} if max_length else {}
        texts = [tokenizer(example.text, **cut)["input_ids"] for example in examples]
        _fit(texts, limit)
        targets = [
            [tokenizer(text_target=choice)["input_ids"] for choice in example.choices]
            for example in examples
        ]
        mask = _pad([[1] * len(ids) for ids in texts], 0)
        return Batch(_pad(texts, 0), mask, _grid(targets, IGNORED), _answers(examples))
    rows = [[_continued(tokenizer, e.text, choice) for choice in e.choices] for e in examples]
    if max_length is not None:
        rows = [[_cut(*one, max_length) for one in row] for row in rows]
    _fit([ids for row in rows for ids, _ in row], limit)
    inputs = _grid([[ids for ids, _ in row] for row in rows], IGNORED)
    labels = [[[IGNORED] * start + ids[start:] for ids, start in row] for row in rows]
    mask = (inputs != IGNORED).long()
    mask[..., 0] = 1  # a choice that is not there still attends to something
    return Batch(inputs.clamp(min=0), mask, _grid(labels, IGNORED), _answers(examples))


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model gives each token of each choice, (n, c, t, vocabulary), in step with `labels`.

    An encoder runs once over each text, and its output is repeated over the choices.
    """
    n, c, t = batch.labels.shape
    if not _encodes(model):
        found = model(
            input_ids=batch.inputs.flatten(0, 1), attention_mask=batch.mask.flatten(0, 1)
        ).logits
        before = torch.cat([found[:, :1], found[:, :-1]], dim=1)  # the first token has no score
        return before.unflatten(0, (n, c))
    from transformers.modeling_outputs import BaseModelOutput

    base: Any = unwrap(model)
    encoded = base.get_encoder()(input_ids=batch.inputs, attention_mask=batch.mask)[0]
    labels = batch.labels.flatten(0, 1)
    found = model(
        encoder_outputs=BaseModelOutput(encoded.repeat_interleave(c, dim=0)),
        attention_mask=batch.mask.repeat_interleave(c, dim=0),
        decoder_input_ids=base.prepare_decoder_input_ids_from_labels(labels),
    ).logits
    return found[:, -t:].unflatten(0, (n, c))


def _encodes(model: nn.Module) -> bool:
    return bool(getattr(unwrap(model).config, "is_encoder_decoder", False))


def _continued(tokenizer: Any, text: str, choice: str) -> tuple[list[int], int]:
    """The tokens of text and choice together, and where the choice begins: tokenized at once, for a
    tokenizer may treat what stands alone otherwise."""
    alone = tokenizer(text)["input_ids"]
    ids = tokenizer(f"{text} {choice}")["input_ids"]
    same = (i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b)
    start = next(same, min(len(alone), len(ids)))
    if not 0 < start < len(ids):
        raise InputError(f"nothing stands before the choice {choice!r}: give its example a text")
    return ids, start


def _cut(ids: list[int], start: int, length: int) -> tuple[list[int], int]:
    """The first token (it may be special) and the last ones, the choice among them."""
    over = max(0, len(ids) - length)
    if over >= start:
        raise InputError(f"a choice of {len(ids) - start} tokens leaves no text within {length}")
    return ids[:1] + ids[1 + over :], start - over


def _fit(rows: Sequence[Sequence[int]], limit: int) -> None:
    longest = max(map(len, rows))
    if longest > limit:
        raise InputError(
            f"a text of {longest} tokens is longer than the {limit} that the model takes: cut "
            f"texts with max_length={limit}"
        )


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _grid(rows: Sequence[Sequence[Sequence[int]]], value: int) -> Tensor:
    """(n, c, t), filled up with `value` in both directions."""
    most = max(map(len, rows))
    full = [one for row in rows for one in [*row, *[[value]] * (most - len(row))]]
    return _pad(full, value).unflatten(0, (len(rows), most))


def _answers(examples: Sequence[Example]) -> Tensor | None:
    known = [example.answer for example in examples if example.answer is not None]
    return torch.tensor(known) if len(known) == len(examples) else None
