"""LoRA-GA: Low-Rank Adaptation with Gradient Approximation. Wang et al. 2024, arXiv:2407.05000.

    U S Vᵀ = ∂L/∂W,   A₀ = c V[:, :r]ᵀ,   B₀ = c U[:, r:2r],   c = out^¼ / √γ;
    W' = W + s (B A - B₀ A₀)

The first step of A and B is then along the best approximation of rank 2r to a step of full
fine-tuning. c keeps its size as the width grows (their "stable" scale, with `rslora=True`). As for
PiSSA the base stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import anchored, places, plainly, require_rank, settle, svd
from trimtab.init.observe import Loss, gradients, several


def lora_ga(
    model: nn.Module,
    batches: Iterable[object],
    name: str | None = None,
    *,
    loss: Loss | None = None,
    gamma: float = 16.0,
    niter: int | None = 4,
) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) along the base's gradient.

    Args:
        batches: data with labels, of which the mean gradient is taken; a few batches do.
        loss: (model, batch) -> loss; left out, the loss that the model computes itself.
        gamma: the larger, the smaller the start.
        niter: steps of random subspace iteration; None asks for the exact decomposition.
    """
    if gamma <= 0:
        raise InputError(f"gamma must be positive, not {gamma}")
    batches = several(batches)
    adapter, found = places(model, name)
    plainly(found, "LoRA-GA needs its gradient")
    for place in found:
        require_rank(place, 2 * place.method.rank, "twice the rank")
    slopes = gradients(model, found, batches, loss)
    starts = []
    with torch.no_grad():
        for place in found:
            G, rank = slopes[place.site.name], place.method.rank
            wide = 2 * rank if niter is None else min(4 * rank, *G.shape)
            U, _, V = svd(G, wide, niter)
            c = place.site.out_features**0.25 / gamma**0.5
            starts.append(anchored(place, c * V[:rank], c * U[:, rank : 2 * rank]))
    return settle(adapter, starts)
