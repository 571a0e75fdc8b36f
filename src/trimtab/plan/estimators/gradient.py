"""What gradient descent gains with each further rank, to first order.

    G = ∂L/∂W = U S Vᵀ,   L(W - η Gᵣ) = L(W) - η Σ_{i≤r} Sᵢ² + O(η²),   gain of rank i = Sᵢ²

No step of rank r and of the same size gains more (Eckart and Young). LoRA-GA (arXiv:2407.05000)
starts from the same triplets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators.estimator import Estimator, falling
from trimtab.plan.sketch import Sketch


class Gradient(Estimator):
    """Squared singular values of the mean gradient."""

    name = "gradient"
    about = "squared singular values of the gradient: steps of gradient descent"

    def __init__(self, candidate: Candidate, generator: torch.Generator) -> None:
        super().__init__(candidate, generator)
        self.sketch = Sketch(*candidate.shape, self.ranks, generator)

    def take(self, x: Tensor, g: Tensor) -> None:
        self.sketch.take(x.flatten(0, 1), g.flatten(0, 1))

    def gains(self) -> Tensor:
        return falling((self.sketch.triplets()[1] / self.batches).square(), self.ranks)
