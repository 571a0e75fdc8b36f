"""What a step along one half's gradient gains on the other half of the batches, to first order.

    G_a = U S Vᵀ,   L_b(W - η Sᵢ uᵢ vᵢᵀ) = L_b(W) - η Sᵢ uᵢᵀ G_b vᵢ + O(η²)
    gain of rank i = (Sᵢ uᵢᵀ G_b vᵢ + the same with a and b exchanged) / 2

A few batches' gradient has noise, and large singular values of it; noise of one half gains nothing
on the other. Both halves keep a sketch under the same test matrices.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators.estimator import Estimator, falling
from trimtab.plan.sketch import Sketch


class HeldOut(Estimator):
    """Agreement of two halves of the batches, by rank."""

    name = "held-out"
    about = "what the gradient of one half of the batches gains on the other half"

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        super().__init__(candidate, generator)
        first = Sketch(*candidate.shape, self.ranks, generator)
        self.halves = (first, copy.deepcopy(first))

    def take(self, x: Tensor, g: Tensor) -> None:
        self.halves[self.batches % 2].take(x.flatten(0, 1), g.flatten(0, 1))

    def gains(self) -> Tensor:
        if self.batches < 2:
            raise InputError("the estimator held-out compares batches: give at least two")
        a, b = (half.triplets() for half in self.halves)
        counts = (self.batches + 1) // 2 * (self.batches // 2)
        return falling((_agreement(a, b) + _agreement(b, a)) / (2 * counts), self.ranks)


def _agreement(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Sᵢ uᵢᵀ G_b vᵢ for the triplets of a."""
    (U, S, V), (left, middle, right) = a, b
    return S * ((U.mT @ left) * middle * (right @ V.mT).mT).sum(-1)
