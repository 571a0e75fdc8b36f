"""What an estimator is: it sees a site's inputs and gradients, and says what each rank is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.plan.candidates import Candidate


class Estimator(ABC):
    """One at each candidate. `batches` counts those that are over; a module that is called twice in
    one is seen twice.

    A vector, as of biases, is a matrix of one column whose input is 1, so that one equation
    serves both.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        self.candidate = candidate
        self.generator = generator
        self.ranks = len(candidate.costs)
        self.batches = self.calls = 0

    @abstractmethod
    def take(self, x: Tensor, g: Tensor) -> None:
        """A batch's inputs (examples, n, in) and gradients of the mean loss (examples, n, out)."""

    @abstractmethod
    def gains(self) -> Tensor:
        """(ranks,): of each further rank, from the first; none above the one before it."""


def shares(importance: Tensor | float, ranks: int) -> Tensor:
    """I, I/2, I/3, …: the greatest of all sites' quotients first is the division in proportion to
    I (d'Hondt), where an estimator tells what a site is worth and nothing of its ranks."""
    return torch.as_tensor(importance, dtype=torch.float32) / torch.arange(1, ranks + 1)


def falling(gains: Tensor, ranks: int) -> Tensor:
    """(ranks,), from the largest, none below 0; what a small matrix does not have is 0."""
    gains = gains.float().cpu().clamp(min=0).sort(descending=True).values[:ranks]
    return torch.cat([gains, torch.zeros(ranks - len(gains))])
