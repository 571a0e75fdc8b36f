"""Tokenising and padding, for every task that reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label that transformers' losses leave out


def tokenise(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[list[dict[str, Any]], int]:
    """An example for each text, or pair of texts, and how many had to be cut. Only those that are
    too long are tokenised again: a fast tokenizer that truncates is slower for all."""
    given = (list(texts),) if pairs is None else (list(texts), list(pairs))
    whole = tokenizer(*given, truncation=False, verbose=False)
    long = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
    cut: Mapping[str, Any] = {}
    if long:
        few = tuple([column[i] for i in long] for column in given)
        cut = tokenizer(*few, truncation=True, max_length=max_length)
    keys = [key for key in ("input_ids", "token_type_ids") if key in whole]
    examples = [{key: whole[key][i] for key in keys} for i in range(len(texts))]
    for place, i in enumerate(long):
        examples[i] = {key: cut[key][place] for key in keys}
    for example in examples:
        example["length"] = len(example["input_ids"])
    return examples, len(long)


def pad(
    examples: Sequence[Mapping[str, Any]], key: str, value: int, *, left: bool = False
) -> Tensor:
    """(batch, longest) integers."""
    longest = max(len(example[key]) for example in examples)
    out = torch.full((len(examples), longest), value, dtype=torch.long)
    for row, example in enumerate(examples):
        n = len(example[key])
        out[row, longest - n if left else 0 : longest if left else n] = torch.as_tensor(
            example[key], dtype=torch.long
        )
    return out


def padded(
    examples: Sequence[Mapping[str, Any]], tokenizer: Any, *, left: bool = False
) -> dict[str, Tensor]:
    """(batch, longest) token ids and mask, and types of tokens where there is more than one."""
    batch = {"input_ids": pad(examples, "input_ids", tokenizer.pad_token_id, left=left)}
    ones = [{"mask": [1] * len(example["input_ids"])} for example in examples]
    batch["attention_mask"] = pad(ones, "mask", 0, left=left)
    if any(any(example.get("token_type_ids", ())) for example in examples):
        batch["token_type_ids"] = pad(examples, "token_type_ids", 0, left=left)
    return batch


def likelihoods(logits: Tensor, labels: Tensor) -> np.ndarray:
    """(n, 2): of each row's tokens that count, the negative log-likelihood and their number; logits
    (n, length, vocabulary) say the next token, labels (n, length) are IGNORED elsewhere."""
    logits, labels = logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    return torch.stack([losses.sum(1), (labels != IGNORED).sum(1)], 1).cpu().double().numpy()


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first tokens are the same: a prompt's last ones may join with what follows."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
