"""The empirical Fisher information of a site: squared gradients of single examples.

    F = 1/N Σ_n ‖G_n‖²_F,   G_n = Σ_t g_ntᵀ x_nt,   ‖G_n‖²_F = Σ_{s,t} (g_ns·g_nt) (x_ns·x_nt)

The right side needs no gradient of any example (Goodfellow 2015, arXiv:1510.01799). Ranks are in
proportion to F. SPT (arXiv:2303.08566) and Sensitivity-LoRA (arXiv:2509.09119) share budgets out by
such a sum over a matrix; `trimtab.init.fisher` chooses single weights by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators.estimator import Estimator, shares


class Fisher(Estimator):
    """The trace of the empirical Fisher information."""

    name = "fisher"
    about = "mean squared gradients of single examples, ranks in proportion"

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        super().__init__(candidate, generator)
        self.sum, self.examples = 0.0, 0

    def take(self, x: Tensor, g: Tensor) -> None:
        count, n, _ = x.shape
        small = n * n <= x.shape[2] * g.shape[2]
        squares = (g @ g.mT) * (x @ x.mT) if small else (g.mT @ x).square()
        self.sum += float(squares.sum()) * count**2  # of the examples' losses, not of their mean
        self.examples += count

    def gains(self) -> Tensor:
        return shares(self.sum / self.examples, self.ranks) * torch.tensor(self.candidate.costs)
