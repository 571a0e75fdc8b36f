"""What steps of a fixed size gain with each further rank, to first order.

    G = U S Vᵀ,   L(W - η Uᵣ Vᵣᵀ) = L(W) - η Σ_{i≤r} Sᵢ + O(η²),   gain of rank i = Sᵢ

Adam divides by the gradient's own size, so that a step is as long at a site of small gradients as
at one of large ones: of all steps of spectral norm η and rank r this gains most (the nuclear norm
is the spectral norm's dual; Bernstein and Newhouse 2024, arXiv:2409.20325).
"""

from __future__ import annotations

from torch import Tensor

from trimtab.plan.estimators.estimator import falling
from trimtab.plan.estimators.gradient import Gradient


class Nuclear(Gradient):
    """Singular values of the mean gradient."""

    name = "nuclear"
    about = "singular values of the gradient: steps of a fixed size, as Adam's"

    def gains(self) -> Tensor:
        return falling(self.sketch.triplets()[1] / self.batches, self.ranks)
