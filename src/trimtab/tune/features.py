"""Head only on cached features: the frozen base runs once over the data, not once an epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.heads import heads
from trimtab.core.walk import plain
from trimtab.evaluate.predict import Collate, Follow, batches, on, precision
from trimtab.tasks.task import Batch, Task, logits_of
from trimtab.tune.replay import Recorded, Tail, record, tail_of

EPOCHS, RATES = 30, (1e-3, 1e-2)
"""Of training a head alone: epochs at each of these learning rates."""

_TOLD = ("labels", "weights")  # of an example, beside what a model is given
_TOLERANCE = 0.05  # bf16's, on logits of a few units


@dataclass(frozen=True)
class Features:
    """What the head receives, (n, width) in fp32, and what the whole model then gave, (n, classes);
    in the order of the examples."""

    values: Tensor
    outputs: np.ndarray
    examples: Sequence[Any]

    def drawn(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in a random order, with the places of their examples."""
        for rows in torch.randperm(len(self.values), generator=generator).split(256):
            yield self.values[rows], rows

    def through(self, head: nn.Module) -> Tensor:
        """(n, classes)"""
        return head(self.values)

    def dataset(self) -> list[dict[str, Any]]:
        return [
            {"features": vector, "length": 1, **{key: one[key] for key in _TOLD if key in one}}
            for vector, one in zip(self.values, self.examples, strict=True)
        ]


Known = Features | Recorded


class FeatureHead(nn.Module):
    """The head alone, as a model over features. Its parameters are the model's own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(features.to(next(self.head.parameters()).dtype)))


class OverFeatures:
    """The task of a `FeatureHead`: the same loss and answers, of batches of features."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(batch["features"])
        return weighed(self.task, outputs.logits, batch["labels"], batch.get("weights")), outputs

    def rows_of(self, outputs: Any, batch: Batch) -> np.ndarray:
        return outputs.logits.float().cpu().numpy()


def collate(examples: Sequence[Any]) -> dict[str, Tensor]:
    batch = {"features": torch.stack([example["features"] for example in examples])}
    for key in _TOLD:
        if key in examples[0]:
            batch[key] = torch.tensor([example[key] for example in examples])
    return batch


def weighed(task: Task, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The loss of what a head gave, by the weight of each example where they have any."""
    if weights is None:
        return task.loss_of(logits, labels)
    each = torch.vmap(lambda z, y: task.loss_of(z[None], y[None]))(logits, labels)
    return (each * weights).mean()


def head_of(model: nn.Module) -> nn.Module | None:
    """The model's own head: one module, or where it has several, the model from its body on."""
    names = heads(model)
    return plain(model.get_submodule(names[0])) if len(names) == 1 else tail_of(model)


def place_of(model: nn.Module) -> str:
    """What the names of the head's parameters begin with in the model."""
    names = heads(model)
    return names[0] if len(names) == 1 else ""


@torch.no_grad()
def extract(
    model: nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    *,
    batch_size: int,
    autocast: bool,
    follow: Follow = iter,
) -> Known | None:
    """The head's inputs for all examples; None where the head is not the model's last step over one
    vector an example, nor can be run again from what the body gave (it then has to be trained
    through the whole model)."""
    head, seen, given = head_of(model), [], []
    if head is None:
        return None
    if isinstance(head, Tail):
        return record(
            model,
            head,
            examples,
            collate,
            batch_size=batch_size,
            autocast=autocast,
            follow=follow,
        )
    device, training = next(model.parameters()).device, model.training
    hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().float()))
    model.eval()
    try:
        for batch in follow(batches(examples, batch_size)):
            inputs = on(collate(batch), device)
            for key in _TOLD:
                inputs.pop(key, None)
            with precision(device, autocast):
                given.append(logits_of(model(**inputs)).float())
            if seen[-1].shape[1:].numel() != seen[-1].shape[1]:  # maps of one pixel are vectors
                return None
    finally:
        hook.remove()
        model.train(training)
    if not _is_last(head, seen[-1], given[-1]):
        return None
    return Features(torch.cat(seen).cpu(), torch.cat(given).cpu().numpy(), examples)


def _is_last(head: nn.Module, features: Tensor, logits: Tensor) -> bool:
    own = copy.deepcopy(head).float().eval()(features)
    return own.shape == logits.shape and bool(
        (own - logits).abs().max() < _TOLERANCE * (1 + own.abs().max())
    )


@torch.no_grad()
def apply(head: nn.Module, features: Known) -> np.ndarray:
    """The logits (n, classes) of a head on features, in fp32."""
    return features.through(copy.deepcopy(head).float().cpu().eval()).numpy()


def probe(
    head: nn.Module,
    train: Known,
    validation: Known,
    task: Task,
    seed: int,
    follow: Follow = iter,
) -> nn.Module:
    """A copy of the head trained on features alone, the best of its epochs and learning rates on
    the validation split.
    """
    best, kept = -math.inf, head
    for score, one in follow(_tried(head, train, validation, task, seed)):
        if score > best:
            best, kept = score, copy.deepcopy(one)
    return kept


def _tried(
    head: nn.Module, train: Known, validation: Known, task: Task, seed: int
) -> Iterator[tuple[float, nn.Module]]:
    """(score on validation, head) after each epoch, at one learning rate after the other."""
    for lr in RATES:
        one = copy.deepcopy(head).float().cpu()
        for score in _epochs(one, train, validation, task, lr, seed):
            yield score, one


def _epochs(
    head: nn.Module, train: Known, validation: Known, task: Task, lr: float, seed: int
) -> Iterator[float]:
    """Train with AdamW and a falling learning rate; yields the score on validation after each
    epoch."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([example["labels"] for example in train.examples])
    given = [example["weights"] for example in train.examples if "weights" in example]
    weights = torch.tensor(given) if given else None
    held_out = torch.tensor([example["labels"] for example in validation.examples])
    head.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for inputs, rows in train.drawn(generator):
            optimizer.zero_grad()
            own = None if weights is None else weights[rows]
            weighed(task, head(inputs), labels[rows], own).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            yield task.fitness(validation.through(head), held_out)
