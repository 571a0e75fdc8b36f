"""What a base makes of examples before any head: one vector an example, or one a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.evaluate.predict import batches, on, precision
from trimtab.tasks.tokens import IGNORED
from trimtab.tune.features import head_of

if TYPE_CHECKING:
    from trimtab.tasks.task import Encoded
    from trimtab.tune.session import Session


@dataclass(frozen=True)
class Vectors:
    """`by` pooling (m, width): of examples, the mean of the last states, and what the head reads;
    of words, what the head reads alone. `labels` (m,), and `counts`, how many of the m each example
    has, in the examples' order."""

    by: dict[str, Tensor]
    labels: Tensor
    counts: list[int]


def refusal(session: Session) -> str | None:
    """Why this task has no such vectors, where it has none."""
    if head_of(session.model) is None:
        return "the model has no one head that reads vectors"
    if session.task.one_vector or session.task.name == "token-classification":
        kind = getattr(session.task, "kind", "one")
        if kind == "one":
            return None
        return f"its neighbours would vote on one label, and this task has kind={kind}"
    return f"{session.task.name} has no label to take from a neighbour"


@torch.no_grad()
def vectors(session: Session, encoded: Encoded) -> Vectors:
    """Of examples with their labels."""
    model, head, seen = session.model, head_of(session.model), []
    assert head is not None
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().float()))
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    counts: list[int] = []
    model.eval()
    try:
        for part in batches(encoded.examples, session.task.eval_batch):
            batch = on(session.collate(part), device)
            inputs = {k: v for k, v in batch.items() if k not in ("labels", "weights", "words")}
            with precision(device, session.config.autocast):
                outputs = model(**inputs, output_hidden_states=True)
            own = seen.pop()
            if own.ndim == 2:
                found.setdefault("what the head reads", []).append(own)
                if "attention_mask" in inputs:
                    mean = _mean(outputs.hidden_states[-1], inputs["attention_mask"])
                    found.setdefault("mean of the last states", []).append(mean)
                labels.append(batch["labels"])
                counts += [1] * len(part)
            else:
                at = batch["labels"] != IGNORED
                found.setdefault("what the head reads of a word", []).append(own[at])
                labels.append(batch["labels"][at])
                counts += at.sum(1).tolist()
    finally:
        hook.remove()
    by = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    return Vectors(by, torch.cat(labels).cpu(), counts)


def _mean(states: Any, mask: Tensor) -> Tensor:
    """(batch, width) of (batch, length, width)."""
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1)


def parted(values: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Values (m, …) of words, by example."""
    return list(values.split(list(counts)))
