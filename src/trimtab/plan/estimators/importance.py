"""GoRA: Gradient-driven Adaptive Low Rank Adaptation. He et al. 2025, arXiv:2502.12171.

    I = mean |W ∘ G|,   ranks in proportion to I

By how much the loss would change were a weight left out, to first order, as in AdaLoRA
(arXiv:2303.10512). Here |W ∘ G| is averaged over batches, so that one site's gradient of one batch
is all that is ever held; the paper sums the gradient first, and corrects for widths otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators.estimator import Estimator, shares


class Importance(Estimator):
    """Mean magnitude of weight times gradient."""

    name = "importance"
    about = "mean |weight × gradient|, ranks in proportion (GoRA)"

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        super().__init__(candidate, generator)
        self.sum = 0.0

    def take(self, x: Tensor, g: Tensor) -> None:
        G = g.flatten(0, 1).mT @ x.flatten(0, 1)
        self.sum += float((self.candidate.own().to(G) * G).abs().mean())

    def gains(self) -> Tensor:
        return shares(self.sum / self.batches, self.ranks) * torch.tensor(self.candidate.costs)
