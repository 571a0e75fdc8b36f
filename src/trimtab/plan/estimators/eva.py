"""EVA: Explained Variance Adaptation. Paischer et al. 2024, arXiv:2410.07170.

    U S Vᵀ = X - mean,   gain of rank i = Sᵢ² / ‖X - mean‖²_F

Ranks go where few directions explain most of a site's inputs. It sees no labels: the directions
matter to the inputs, and not to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.init.eva import Directions
from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators.estimator import Estimator, falling

_ROWS = 128  # of a batch, drawn anew: a decomposition of all would outlast the pass


class Eva(Estimator):
    """Explained variance of the inputs."""

    name = "eva"
    about = "variance of the inputs that each direction explains (EVA)"

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        super().__init__(candidate, generator)
        self.directions = Directions(min(self.ranks, candidate.shape[1]), tau=1.0)

    def take(self, x: Tensor, g: Tensor) -> None:
        rows = x.flatten(0, 1)
        rows = rows[rows.abs().sum(-1) > 0]
        chosen = torch.randperm(len(rows), generator=self.generator)[:_ROWS]
        self.directions.take(rows[chosen.to(rows.device)])

    def gains(self) -> Tensor:
        if not self.directions.seen:
            return torch.zeros(self.ranks)
        return falling(self.directions.explained.nan_to_num(), self.ranks)
