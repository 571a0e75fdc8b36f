"""Parts of a batch side by side, each on cores of its own.

Two threads that share every product wait for one another after each, and one of them waits while
Python decides what comes next. Here each works on rows of its own, through a copy of the model that
shares every tensor and has gradients of its own; with few trained parameters their sum costs
nothing.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.tune import hardware

Batch = Mapping[str, Any]  # tensors, or None for what there is none of
Loss = Callable[[nn.Module, Batch], Tensor]
_LEAST = 4  # examples in a part


class Replicas:
    """`count` copies of a model in training, and a thread for each; `loss` is a mean over rows."""

    def __init__(self, model: nn.Module, count: int, loss: Loss) -> None:
        self.loss, self.trained = loss, _trained(model)
        self.models = [_sharing(model).train() for _ in range(count)]
        self.pool = ThreadPoolExecutor(
            count,
            "replica",
            initializer=torch.set_num_threads,
            initargs=(max(1, torch.get_num_threads() // count),),
        )

    def backward(self, batch: Batch, share: float = 1.0) -> Tensor:
        """This share of the batch's loss; its gradients are added to the model's."""
        for model in self.models:
            for own, theirs in zip(self.trained, _trained(model), strict=True):
                theirs.data = own.data  # an optimizer or a device may have moved it
        rows = len(next(iter(batch.values())))
        jobs = [
            self.pool.submit(_backward, model, part, self.loss, share / rows)
            for model, part in zip(self.models, _parts(batch, len(self.models)), strict=True)
            if len(next(iter(part.values())))
        ]
        wait(jobs)  # all, so that none still runs when one has failed
        try:
            losses = [job.result() for job in jobs]
            for model in self.models[: len(jobs)]:
                _take_gradients(self.trained, _trained(model))
        finally:  # what a part that failed left must not join the next batch's
            for model in self.models:
                _forget(model)
        return torch.stack(losses).sum()

    def close(self) -> None:
        self.pool.shutdown()
        torch.set_num_threads(torch.get_num_threads())  # new threads begin with what was set last


def _backward(model: nn.Module, part: Batch, loss: Loss, each: float) -> Tensor:
    """`each` is the weight of a row."""
    value = loss(model, part) * (each * len(next(iter(part.values()))))
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _sharing(model: nn.Module) -> nn.Module:
    """A copy whose tensors are the model's own memory."""
    shared: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    for one in model.parameters():
        shared[id(one)] = nn.Parameter(one.detach()) if one.requires_grad else one
    return copy.deepcopy(model, shared)


def _parts(batch: Batch, count: int) -> Iterator[dict[str, Tensor]]:
    """What a batch does not have, a part does not have."""
    split = {
        name: [None] * count if tensor is None else tensor.tensor_split(count)
        for name, tensor in batch.items()
    }
    return ({name: parts[index] for name, parts in split.items()} for index in range(count))


@torch.no_grad()
def _take_gradients(own: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for mine, other in zip(own, theirs, strict=True):
        if other.grad is not None:
            mine.grad = other.grad if mine.grad is None else mine.grad.add_(other.grad)


def choose(model: nn.Module, batch: Batch, loss: Loss) -> tuple[int, dict[str, float]]:
    """How many parts make a step fastest here, by measurement; 1: the whole batch at once. A step
    that draws random numbers, as dropout does, or writes into a buffer, as a batch norm does, stays
    whole: threads would do so in any order."""
    first = next(iter(batch.values()))
    most = min(torch.get_num_threads(), len(first) // _LEAST)
    counts = [2**i for i in range(1, most.bit_length())]
    if not counts or first.device.type != "cpu" or _ordered(model, batch, loss):
        return 1, {}
    training = model.training
    made = {count: Replicas(model, count, loss) for count in counts}
    calls: dict[str, Callable[[], Any]] = {"1": lambda: _whole(model.train(), batch, loss)}
    for count, replicas in made.items():
        calls[str(count)] = functools.partial(_timed, replicas, model, batch)
    try:
        took = hardware.measure(calls, rounds=3)
    finally:
        model.train(training)
        for replicas in made.values():
            replicas.close()
    return int(min(took, key=lambda count: took[count])), took


def _whole(model: nn.Module, batch: Batch, loss: Loss) -> None:
    _backward(model, batch, loss, 1 / len(next(iter(batch.values()))))
    _forget(model)


def _timed(replicas: Replicas, model: nn.Module, batch: Batch) -> None:
    replicas.backward(batch)
    _forget(model)


def _forget(model: nn.Module) -> None:
    for parameter in _trained(model):
        parameter.grad = None


def _ordered(model: nn.Module, batch: Batch, loss: Loss) -> bool:
    """Whether a step takes random numbers, or changes more than gradients."""
    training, drawn = model.training, torch.get_rng_state()
    written = [buffer._version for buffer in model.buffers()]
    _whole(model.train(), batch, loss)
    model.train(training)
    same = torch.equal(drawn, torch.get_rng_state())
    return not same or written != [buffer._version for buffer in model.buffers()]
