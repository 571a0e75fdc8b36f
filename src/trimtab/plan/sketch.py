"""The leading singular triplets of a gradient that is never formed. Tropp, Yurtsever, Udell and
Cevher 2017, arXiv:1609.00048.

    G = Σ gᵀ x,   Y = G Ω = Σ gᵀ (x Ω),   Z = Ψ G = Σ (g Ψᵀ)ᵀ x
    Q = orth(Y),   X = (Ψ Q)⁺ Z,   G ≈ Q X

x (n, in) is what a linear map is given, g (n, out) the gradient of the loss at what it gives. One
pass over the data; what is kept are k columns and l rows, and not (out, in).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Sketch:
    """Columns Y (out, k) and rows Z (l, in) of G, with k = 2 r + 1 and l = 2 k + 1 for the r
    leading triplets; of a matrix that is no larger than this, all of it."""

    def __init__(
        self, out_features: int, in_features: int, rank: int, generator: torch.Generator
    ) -> None:
        k = min(2 * rank + 1, out_features, in_features)
        self.test = _orthonormal(in_features, k, generator)
        self.cotest = _orthonormal(out_features, min(2 * k + 1, out_features), generator).mT
        self.Y = torch.zeros(out_features, k)
        self.Z = torch.zeros(self.cotest.shape[0], in_features)

    def take(self, x: Tensor, g: Tensor) -> None:
        """Add gᵀ x, of rows (n, in) and (n, out)."""
        if self.Y.device != x.device:
            for name in ("test", "cotest", "Y", "Z"):
                setattr(self, name, getattr(self, name).to(x.device))
        self.Y += g.mT @ (x @ self.test)
        self.Z += (g @ self.cotest.mT).mT @ x

    def triplets(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, k), S (k,), Vᵀ (k, in)."""
        Q = torch.linalg.qr(self.Y).Q
        X = torch.linalg.lstsq(self.cotest @ Q, self.Z).solution
        U, S, V = torch.linalg.svd(X, full_matrices=False)
        return Q @ U, S, V


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns: where they are as many as rows, nothing is lost."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q
