"""PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models.
Meng et al. 2024, arXiv:2404.02948.

    U S Vᵀ = W,   s B₀ A₀ = U[:, :r] S[:r] V[:, :r]ᵀ,   √S to each;   W' = W + s (B A - B₀ A₀)

What trains is the principal part of W instead of noise. The paper subtracts s B₀ A₀ from the base;
here it is an anchor beside the factors, and the base stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.init.begin import anchored, halves, matrix, places, require_rank, settle, svd


@torch.no_grad()
def pissa(model: nn.Module, name: str | None = None, *, niter: int | None = None) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at its weights' principal part.

    `niter` asks for a random subspace iteration of so many steps instead of the exact decomposition
    (the paper's fast SVD; 4 to 16), which is quicker on large matrices.
    """
    adapter, found = places(model, name)
    starts = []
    for place in found:
        require_rank(place, place.method.rank)
        A, B = principal(matrix(place.site), place.method.rank, place.method.scale, niter)
        starts.append(anchored(place, A, B))
    return settle(adapter, starts)


def principal(
    W: Tensor, rank: int, scale: float, niter: int | None = None
) -> tuple[Tensor, Tensor]:
    """(A, B) of W's principal part; experts one by one."""
    return halves(*svd(W, rank, niter), scale)
