"""The same rank everywhere, which is what everybody does who measures nothing.

    gain of rank i = cost of a rank / i

Gain per cost is then 1, 1/2, 1/3, … at every site: nobody gets a second rank before all have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.plan.estimators.estimator import Estimator, shares


class Even(Estimator):
    """No measurement: the budget spread evenly."""

    name = "even"
    about = "nothing measured: the same rank everywhere"

    def take(self, x: Tensor, g: Tensor) -> None:
        pass

    def gains(self) -> Tensor:
        return shares(1.0, self.ranks) * torch.tensor(self.candidate.costs)
