"""OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models. Büyükakyüz 2024,
arXiv:2406.01775.

    Q R = W,   B₀ = Q[:, :r],   A₀ = R[:r];   W' = W + s (B A - B₀ A₀)

B starts orthonormal, which conditions the first steps. As for PiSSA the base stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.init.begin import anchored, matrix, places, require_rank, settle


@torch.no_grad()
def olora(model: nn.Module, name: str | None = None) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at its weights' QR factors."""
    adapter, found = places(model, name)
    starts = []
    for place in found:
        require_rank(place, place.method.rank)
        starts.append(anchored(place, *leading(matrix(place.site), place.method.rank)))
    return settle(adapter, starts)


def leading(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A, B) of the first columns of Q and rows of R; experts one by one."""
    Q, R = torch.linalg.qr(W)
    return R[..., :rank, :], Q[..., :rank]
