"""What each method costs in time: measured against the base and against full fine-tuning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.capabilities import attached, standard
from trimtab.core.call import given
from trimtab.core.errors import TrimtabError
from trimtab.core.method import Method
from trimtab.core.registry import lookup
from trimtab.core.training import parameters, penalty
from trimtab.quant import quantise
from trimtab.testing.check import own_random_numbers
from trimtab.tune.hardware import measure

EXAMPLES, TOKENS = 8, 64


@dataclass(frozen=True)
class Overhead:
    """Time with the method, unmerged, over time without: `forward` of the base's forward pass,
    `step` of full fine-tuning's forward and backward pass. `refused` says why it has none."""

    forward: float | None = None
    step: float | None = None
    refused: str | None = None


def overheads(names: Sequence[str], rounds: int = 5) -> Iterator[tuple[str, Overhead]]:
    """(method, overhead), each measured beside the base in alternation: medians of `rounds`."""
    logging.disable(logging.WARNING)  # libraries of quantised maps tell what they could not load
    try:
        with own_random_numbers():
            for name in names:
                yield name, overhead(lookup(name)(), rounds)
    finally:
        logging.disable(logging.NOTSET)


def overhead(method: Method, rounds: int = 5) -> Overhead:
    """One method's, in a BERT of two blocks of width 768, over 8 texts of 64 tokens."""
    base, full, model = (standard().train() for _ in range(3))
    attached(lookup("full")(), full, None)
    try:
        if method.base is not None:
            quantise(model, method.base)
        attached(method.readied() if method.unready() else method, model, None)
        took = measure(_calls(method, base, full, model), rounds)
    except (TrimtabError, RuntimeError) as error:
        return Overhead(refused=" ".join(str(error).split()))
    return Overhead(round(took["forward"] / took["base"], 2), round(took["step"] / took["full"], 2))


def _calls(
    method: Method, base: nn.Module, full: nn.Module, model: nn.Module
) -> dict[str, Callable[[], object]]:
    ids = torch.randint(5, 90, (EXAMPLES, TOKENS))
    batch = {"input_ids": ids, "labels": torch.zeros(EXAMPLES, dtype=torch.long)}

    def facts() -> contextlib.AbstractContextManager[Any]:
        if "task_ids" not in method.needs:
            return contextlib.nullcontext()
        return given(model, task_ids=torch.zeros(EXAMPLES, dtype=torch.long))

    def forward(one: nn.Module) -> Tensor:
        with torch.no_grad():
            return one(**batch).logits

    def step(one: nn.Module) -> None:
        (one(**batch).loss + 0 * penalty(one)).backward()
        for parameter in parameters(one):
            parameter.grad = None

    def own(call: Callable[[nn.Module], object]) -> object:
        with facts():
            return call(model)

    return {
        "base": lambda: forward(base),
        "forward": lambda: own(forward),
        "full": lambda: step(full),
        "step": lambda: own(step),
    }
