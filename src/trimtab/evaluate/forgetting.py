"""What a base could do before it was adapted, and whether it still can.

A causal language model predicts text. Its ability is the mean negative log-likelihood of held-out
sentences, in nats for each token, and

    forgetting = L(adapted) - L(base)              perplexity = exp L

Another model that reads text has no output of its own to be held to, but its vectors say which
sentences are alike. With N(i) the K nearest of sentence i's neighbours, by the cosine of
mean-pooled last states,

    forgetting = 1 - mean over i of |N_adapted(i) ∩ N_base(i)| / K

so that 0 is a geometry unchanged, and chance is about 1 - K/n. Either is 0 when the adapter is off.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.evaluate.sentences import SENTENCES

if TYPE_CHECKING:
    from trimtab.tune.session import Session

NEIGHBOURS = 5
FEWEST = 3 * NEIGHBOURS  # sentences, for neighbours to mean anything
_LONGEST = 128  # tokens of a sentence
_BATCH = 16


@dataclass(frozen=True)
class Ability:
    """What is compared: a loss, or the vectors of the sentences (n, width); or why neither."""

    loss: float | None = None
    vectors: Tensor | None = None
    why: str = ""


def lines(probe: str | None) -> tuple[str, ...]:
    """The sentences of a text file, one a line; without one, those of general English that come
    with Trimtab."""
    if probe is None:
        return SENTENCES
    try:
        text = Path(probe).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--probe {probe} cannot be read as text: {error}") from None
    found = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(found) < FEWEST:
        raise InputError(
            f"--probe {probe} has {len(found)} different lines: at least {FEWEST} sentences are "
            "needed, one a line"
        )
    return found


def ability(session: Session, sentences: Sequence[str]) -> Ability:
    """What the model as it is now makes of the sentences."""
    tokenizer, model = session.processor, session.model
    if not hasattr(tokenizer, "pad") or not hasattr(tokenizer, "vocab_size"):
        return Ability(why="the base reads no text, and the probe is text")
    accepted = inspect.signature(type(model).forward).parameters
    if "output_hidden_states" not in accepted and "kwargs" not in accepted:
        return Ability(why=f"{type(model).__name__} does not show its states")
    parts = [sentences[i : i + _BATCH] for i in range(0, len(sentences), _BATCH)]
    training = model.training
    model.eval()
    try:
        if session.task.name == "text-generation":
            return Ability(loss=_loss(model, tokenizer, parts))
        return _vectors(model, tokenizer, parts)
    finally:
        model.train(training)


def told(before: Ability, after: Ability, without: Ability) -> dict[str, Any]:
    """For `measured.json`: the measure, with the adapter and with it off again."""
    if before.why:
        return {"measure": None, "why": before.why}
    if before.loss is not None:
        assert after.loss is not None
        assert without.loss is not None
        return {
            "measure": "nats per token of held-out text",
            "perplexity": {"base": math.exp(before.loss), "adapted": math.exp(after.loss)},
            "adapted": after.loss - before.loss,
            "without": without.loss - before.loss,
        }
    assert before.vectors is not None
    return {
        "measure": f"share of {NEIGHBOURS} nearest neighbours that changed",
        "adapted": 1 - agreement(before.vectors, after.vectors),
        "without": 1 - agreement(before.vectors, without.vectors),
    }


def agreement(one: Tensor, other: Tensor | None) -> float:
    """The mean share of nearest neighbours that two sets of vectors (n, width) have in common."""
    assert other is not None
    a, b = neighbours(one), neighbours(other)
    same = (a[:, :, None] == b[:, None, :]).any(-1).float().mean(-1)
    return float(same.mean())


def neighbours(vectors: Tensor) -> Tensor:
    """(n, K): of each vector the nearest others by cosine."""
    unit = F.normalize(vectors.double(), dim=-1)
    near = unit @ unit.T
    near.fill_diagonal_(-math.inf)
    return near.topk(NEIGHBOURS, dim=-1).indices


def _batch(model: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    given = tokenizer(
        list(texts), return_tensors="pt", padding=True, truncation=True, max_length=_LONGEST
    )
    return {key: tensor.to(next(model.parameters()).device) for key, tensor in given.items()}


@torch.no_grad()
def _loss(model: Any, tokenizer: Any, parts: Sequence[Sequence[str]]) -> float:
    """Nats for each token, of all the sentences together."""
    total, count = 0.0, 0
    for texts in parts:
        batch = _batch(model, tokenizer, texts)
        batch.pop("token_type_ids", None)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        logits = model(**batch).logits[:, -labels.shape[1] - 1 : -1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


@torch.no_grad()
def _vectors(model: Any, tokenizer: Any, parts: Sequence[Sequence[str]]) -> Ability:
    """Mean-pooled last states (n, width); positions that an adapter puts in front are left out."""
    found = []
    for texts in parts:
        batch = _batch(model, tokenizer, texts)
        mask = batch["attention_mask"].unsqueeze(-1)
        try:
            outputs = model(**_started(model, batch), output_hidden_states=True)
        except (TypeError, ValueError) as error:
            return Ability(why=f"the base does not take plain sentences: {error}")
        states = getattr(outputs, "encoder_hidden_states", None) or outputs.hidden_states
        last = states[-1][:, -mask.shape[1] :].float()
        found.append((last * mask).sum(1) / mask.sum(1))
    return Ability(vectors=torch.cat(found).cpu())


def _started(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder-decoder's decoder begins, and no more."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return batch
    ids = batch["input_ids"]
    first = model.config.decoder_start_token_id or 0
    begun = torch.full((len(ids), 1), first, device=ids.device)
    kept = {key: batch[key] for key in ("input_ids", "attention_mask")}
    return {**kept, "decoder_input_ids": begun}
