"""T-Few: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.
Liu et al. 2022, arXiv:2205.05638.

    L_LM = - 1/T Σ_t log p(y_t | x, y_<t)                                  over the right choice
    L_UL = - Σ_n Σ_t log(1 - p(ŷ_t^n | x, ŷ_<t^n)) / Σ_n T^n               over the wrong ones
    L_LN = - log( exp β(y) / Σ_choices exp β ),    β(y) = 1/T Σ_t log p(y_t | x, y_<t)
    L    = L_LM + L_UL + L_LN

Unlikelihood lowers each token of the wrong choices; the third term ranks whole choices as a
prediction does, with no disadvantage to long ones. In L_UL p is taken times 0.99, which keeps the
loss finite at p = 1 (the authors' code adds 0.01 within the logarithm to the same end).

The paper trains IA³ by Adafactor for 1,000 steps of 8 examples; the learning rate rises to 3e-3 in
60 steps and then falls linearly to zero. l may start from one that was pre-trained: load it, with
`trainable=True`. Adafactor's steps are in proportion to a parameter's size: where one starts at
zero, as LoRA's B does, it hardly moves, and another optimizer is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab import after_backward, parameters, penalty
from trimtab.core.errors import InputError
from trimtab.recipes.choices import IGNORED, Batch, Example, encode, logits

STEPS, BATCH, RATE, WARMUP = 1000, 8, 3e-3, 60
_BOUND = 0.99


class Losses(NamedTuple):
    """The three terms of T-Few, each a scalar."""

    lm: Tensor
    unlikelihood: Tensor
    length_normalised: Tensor

    @property
    def total(self) -> Tensor:
        return self.lm + self.unlikelihood + self.length_normalised


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of every label, 0 where it is ignored: (n, c, t)."""
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -flat.view_as(labels)


def normalised(logits: Tensor, labels: Tensor) -> Tensor:
    """β, the mean log-probability of a choice's tokens, (n, c); -inf where there is no choice."""
    lengths = (labels != IGNORED).sum(-1)
    means = log_probabilities(logits, labels).sum(-1) / lengths.clamp(min=1)
    return means.masked_fill(lengths == 0, -torch.inf)


def losses(logits: Tensor, labels: Tensor, answers: Tensor) -> Losses:
    """The losses of choices (n, c, t, vocabulary) with tokens `labels` (n, c, t), of which
    `answers` (n,) are right."""
    found, there = log_probabilities(logits, labels), labels != IGNORED
    right = F.one_hot(answers, labels.shape[1]).bool()[..., None] & there
    wrong = there & ~right
    unlikely = -torch.log1p(-_BOUND * found.exp())
    return Losses(
        lm=-found[right].mean(),
        unlikelihood=unlikely[wrong].sum() / wrong.sum().clamp(min=1),
        length_normalised=F.cross_entropy(normalised(logits, labels), answers),
    )


def train(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float = RATE,
    warmup: int = WARMUP,
    max_length: int | None = None,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    on_step: Callable[[int, Losses], None] | None = None,
) -> list[float]:
    """Train what is active on the model, whatever its method; returns the total loss of each step.

    Args:
        lr: the highest learning rate of Adafactor, times what the method says; of a given
            `optimizer`, its own counts.
        warmup: steps in which the rate rises; it then falls linearly to zero.
        on_step: called with the step, from 1, and its losses.
    """
    _check(examples, steps, batch_size, warmup, lr)
    if optimizer is not None and lr != RATE:
        raise InputError(f"lr={lr} is for Adafactor, and the given optimizer has a rate of its own")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("nothing active trains: attach a method, or load(…, trainable=True)")
    groups = parameters(model, lr=lr)
    optimizer = optimizer or torch.optim.Adafactor(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps, warmup))
    device = next(model.parameters()).device
    training, course = model.training, []
    model.train()
    try:
        for step, drawn in enumerate(_draws(examples, batch_size, steps, seed), start=1):
            batch = encode(model, tokenizer, drawn, max_length).to(device)
            assert batch.answers is not None
            found = losses(logits(model, batch), batch.labels, batch.answers)
            optimizer.zero_grad()
            (found.total + penalty(model)).backward()
            after_backward(model, step, steps)
            optimizer.step()
            schedule.step()
            course.append(found.total.item())
            if on_step is not None:
                on_step(step, found)
    finally:
        model.train(training)
    return course


def rate(done: int, steps: int, warmup: int) -> float:
    """The share of the learning rate after so many steps: up linearly, then down to zero."""
    if done < warmup:
        return (done + 1) / (warmup + 1)
    return max(0.0, (steps - done) / max(1, steps - warmup))


def _draws(
    examples: Sequence[Example], size: int, steps: int, seed: int
) -> Iterator[list[Example]]:
    """`steps` batches: over all examples in random order, again and again."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(len(examples), generator=generator).tolist()
        yield [examples[i] for i in order[:size]]
        order = order[size:]


@torch.no_grad()
def scores(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    batch_size: int = BATCH,
    max_length: int | None = None,
) -> Tensor:
    """The length-normalised log-probability of every choice, (n, c); -inf where there is none."""
    if batch_size < 1:
        raise InputError(f"batch_size counts from 1, and is {batch_size}")
    device, training = next(model.parameters()).device, model.training
    most = max((len(example.choices) for example in examples), default=0)
    found = torch.full((len(examples), most), -torch.inf)
    model.eval()
    try:
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            batch: Batch = encode(model, tokenizer, some, max_length).to(device)
            values = normalised(logits(model, batch), batch.labels).cpu()
            found[start : start + len(some), : values.shape[1]] = values
    finally:
        model.train(training)
    return found


def predict(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], **options: Any
) -> list[int]:
    """Rank classification: the index of the choice that scores highest. Options: of `scores`."""
    found = scores(model, tokenizer, examples, **options)
    return found.argmax(-1).tolist() if len(found) else []


def _check(
    examples: Sequence[Example], steps: int, batch_size: int, warmup: int, lr: float
) -> None:
    if not examples:
        raise InputError("there are no examples to train on")
    if steps < 1 or batch_size < 1 or warmup < 0:
        raise InputError(
            f"steps and batch_size count from 1, warmup from 0, and are {steps}, {batch_size}, "
            f"{warmup}"
        )
    if lr < 0:
        raise InputError(f"lr must not be negative, and is {lr}")
    for i, example in enumerate(examples):
        if not isinstance(example, Example):
            raise InputError(f"example {i} must be an Example, and is {example!r:.60}")
        if example.answer is None:
            raise InputError(f"example {i} has no answer to train on: {example.text!r:.60}")
