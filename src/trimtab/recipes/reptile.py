"""Reptile: a start from which few examples are enough. On First-Order Meta-Learning Algorithms.
Nichol, Achiam and Schulman 2018, arXiv:1803.02999.

    φ̃ = U_τ^k(φ)            k steps of SGD or Adam on the task τ
    φ ← φ + ε (φ̃ - φ)       towards where the task's training led; ε falls linearly to zero

The φ are an adapter's parameters alone, with those of a head that it trains: the base is frozen,
and a start is as small as the adapter. The tasks are drawn in turn; each has as many labels as the
head has outputs. What is found is a start like any other: save it, and begin there with
`trimtab tune --start-from`, or train on in a loop of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import after_backward, parameters
from trimtab.core.errors import InputError

Batch = Mapping[str, Any]
TaskBatches = Callable[[int], Sequence[Batch]]
"""A task: for a number of steps, as many batches of its examples."""
Loss = Callable[[nn.Module, Batch], Tensor]

ROUNDS, STEPS, STEP = 100, 5, 1.0


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that transformers' models give for a batch with labels."""
    return model(**batch).loss


def reptile(
    model: nn.Module,
    tasks: Sequence[TaskBatches],
    *,
    loss: Loss = own_loss,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    lr: float = 1e-3,
    step: float = STEP,
    seed: int = 0,
) -> Iterator[float]:
    """Move the active adapter's parameters to where few steps on a task like these go far; after
    each round yields the task's mean loss in it. Run it to the end: `list(reptile(…))`.

    Args:
        model: with an adapter that trains.
        tasks: what is learnt from, drawn at random; a task gives `n` batches when asked for them.
        loss: of a model and a batch; one that is not the model's own adds `trimtab.penalty`.
        rounds: how many tasks are drawn.
        steps: k, of Adam within a task.
        lr: the learning rate within a task.
        step: ε at the beginning.

    Raises:
        InputError: no tasks, no steps, nothing that trains, or a task with too few batches.
    """
    if not tasks or rounds < 1 or steps < 1 or not 0 < step <= 1:
        raise InputError(
            f"reptile takes tasks, rounds and steps of one at least, and a step in (0, 1], not "
            f"{len(tasks)} tasks, {rounds}, {steps} and {step}"
        )
    trained = [one for one in parameters(model) if one.requires_grad]
    if not trained:
        raise InputError("nothing of the model trains: attach an adapter first")
    generator = torch.Generator().manual_seed(seed)
    for done in range(rounds):
        task = tasks[int(torch.randint(len(tasks), (), generator=generator))]
        before = [one.detach().clone() for one in trained]
        found = adapt(model, task(steps), loss=loss, lr=lr)
        if len(found) < steps:
            raise InputError(f"a task gave {len(found)} batches, where {steps} were asked for")
        towards = step * (1 - done / rounds)
        with torch.no_grad():
            for parameter, old in zip(trained, before, strict=True):
                parameter.copy_(old + towards * (parameter - old))
        yield sum(found) / len(found)


def adapt(
    model: nn.Module, batches: Sequence[Batch], *, loss: Loss = own_loss, lr: float = 1e-3
) -> list[float]:
    """U^k: a step of Adam on each batch; returns the losses, each from before its step."""
    trained = [one for one in parameters(model) if one.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)
    losses = []
    model.train()
    for done, batch in enumerate(batches, 1):
        found = loss(model, batch)
        optimizer.zero_grad()
        found.backward()
        after_backward(model, done, len(batches))
        optimizer.step()
        losses.append(float(found.detach()))
    return losses
