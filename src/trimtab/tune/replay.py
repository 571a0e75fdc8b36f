"""Heads of several parts: the model runs on without its body, from what the body gave.

A head may be a projection, a mean over what is no padding, and a classifier (wav2vec 2.0, Whisper's
encoder), or a norm behind a mean (VideoMAE): what happens between its parts is in the model's own
forward. So that forward runs again, with the outputs that the frozen body gave once in the body's
place; they are kept by batches, as they were padded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core.heads import body, heads
from trimtab.core.walk import plain
from trimtab.evaluate.predict import Collate, Follow, batches, on, precision
from trimtab.tasks.task import logits_of

ROOM = 2**30
"""Bytes of a split's outputs that are kept: else the head is not trained alone."""

_TOLERANCE = 0.05  # bf16's, on logits of a few units


@dataclass(frozen=True)
class Part:
    """A batch: what the model was given, and what its body made of it; in fp32."""

    inputs: Mapping[str, Any]
    given: Any
    rows: Tensor


@dataclass(frozen=True)
class Recorded:
    """The examples' batches, and what the whole model then gave, (n, classes), in their order."""

    parts: Sequence[Part]
    outputs: np.ndarray
    examples: Sequence[Any]

    def drawn(self, generator: torch.Generator) -> Iterator[tuple[Part, Tensor]]:
        """Batches in a random order, with the places of their examples."""
        for i in torch.randperm(len(self.parts), generator=generator).tolist():
            yield self.parts[i], self.parts[i].rows

    def through(self, head: nn.Module) -> Tensor:
        """(n, classes)"""
        return torch.cat([head(part) for part in self.parts])


class Given(nn.Module):
    """Stands where the body was."""

    outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.outputs


class Tail(nn.Module):
    """The model from its body on. Its parameters are those of the model's own heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        inside, there = body(model), dict(model.named_children())
        self.given = Given()
        shell = copy.copy(model)
        shell.__dict__["_modules"] = {
            name: self.given if child is inside else plain(child) for name, child in there.items()
        }
        self.__dict__["shell"] = shell  # no part of this module: names stay the model's
        for name in heads(model):
            self.add_module(name, plain(there[name]))

    def forward(self, part: Part) -> Tensor:
        """The logits (batch, classes)"""
        self.given.outputs = part.given
        try:
            return logits_of(self.__dict__["shell"](**part.inputs))
        finally:
            self.given.outputs = None


def tail_of(model: nn.Module) -> Tail | None:
    """Where the body is a child of the model, and what is trained of the head are children, too."""
    inside, names = body(model), heads(model)
    children = dict(model.named_children())
    if inside is None or not any(child is inside for child in children.values()):
        return None
    if "forward" in vars(model) or not names or not set(names) <= set(children):
        return None
    return Tail(model)


@torch.no_grad()
def record(
    model: nn.Module,
    tail: Tail,
    examples: Sequence[Any],
    collate: Collate,
    *,
    batch_size: int,
    autocast: bool,
    follow: Follow = iter,
) -> Recorded | None:
    """What the body makes of all examples; None where the model's own forward needs more of its
    body than that, or there is no room."""
    inside, seen, parts, given = body(model), [], [], []
    assert inside is not None
    device, training = next(model.parameters()).device, model.training
    hook = inside.register_forward_hook(lambda _, __, outputs: seen.append(outputs))
    model.eval()
    done, room = 0, ROOM
    try:
        for batch in follow(batches(examples, batch_size)):
            inputs = on(collate(batch), device)
            inputs = {k: v for k, v in inputs.items() if k not in ("labels", "weights")}
            with precision(device, autocast):
                given.append(logits_of(model(**inputs)).float().cpu())
            kept = _kept(seen.pop())
            if seen or kept is None or (room := room - _bytes(kept) - _bytes(inputs)) < 0:
                return None
            rows = torch.arange(done, done := done + len(batch))
            parts.append(Part(on(_plain(inputs), torch.device("cpu")), kept, rows))
    finally:
        hook.remove()
        model.train(training)
    found = Recorded(parts, torch.cat(given).numpy(), examples)
    return found if _is_hosted(model) or _replays(tail, found, given[-1]) else None


def _replays(tail: Tail, found: Recorded, expected: Tensor) -> bool:
    try:
        own = copy.deepcopy(tail).float().cpu().eval()(found.parts[-1])
    except (AttributeError, TypeError, KeyError):  # it asks its body for more than outputs
        return False
    return own.shape == expected.shape and bool(
        (own - expected).abs().max() < _TOLERANCE * (1 + own.abs().max())
    )


def _is_hosted(model: nn.Module) -> bool:
    """Whether the heads have deltas on them: they were found to replay before."""
    return any(
        plain(model.get_submodule(name)) is not model.get_submodule(name) for name in heads(model)
    )


def _kept(outputs: Any) -> Any:
    """The tensors of a body's outputs, in fp32; nothing where they are of no known form."""
    if isinstance(outputs, tuple):
        return _plain(outputs)
    if not isinstance(outputs, Mapping):
        return None
    return type(outputs)(**{k: _plain(x) for k, x in outputs.items() if _is_data(x)})


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and all(_is_data(one) for one in value)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.float() if value.is_floating_point() else value).cpu()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, Mapping) else value
    return sum(map(_bytes, parts)) if isinstance(value, Mapping | tuple | list) else 0
