"""LoftQ: LoRA-Fine-Tuning-Aware Quantization. Li et al. 2023, arXiv:2310.08659.

    Qₜ = quantise(W - s Bₜ₋₁ Aₜ₋₁),   s Bₜ Aₜ = SVD_r(W - Qₜ),   B₀ A₀ = 0;   W' = Q + s B A

The adapter starts where it makes up for what quantising took. So the model starts near the float
model instead of at its quantised base, and there is no anchor. `loftq` takes the base as it was
quantised; `alternate` makes the weights to quantise where more than one step is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import (
    elsewhere,
    free,
    halves,
    matrix,
    places,
    require_rank,
    settle,
    svd,
)


@torch.no_grad()
def loftq(
    model: nn.Module, floats: nn.Module | Mapping[str, Tensor], name: str | None = None
) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at what its quantised base
    lacks of the float model, or its state dict; where it lacks nothing, that stays as it is."""
    adapter, found = places(model, name)
    if not isinstance(floats, nn.Module | Mapping):
        raise InputError(f"floats is a model or its state dict, and not {type(floats).__name__}")
    state = floats.state_dict() if isinstance(floats, nn.Module) else floats
    starts = []
    for place in found:
        require_rank(place, place.method.rank)
        Q = matrix(place.site)
        W = elsewhere(place.site, state).to(Q)
        if torch.equal(W, Q):  # it was not quantised: there its start is as good as any
            continue
        rank, scale = place.method.rank, place.method.scale
        starts.append(free(place, *halves(*svd(W - Q, rank), scale)))
    if not starts:
        raise InputError(
            "loftq: the base has the weights of the float model: nothing was lost that an adapter "
            "could start from. Quantise it before attaching: trimtab.quantise(model, 'nf4')"
        )
    settle(adapter, starts)
    for place in found:  # DoRA's lengths are those of the rows that its sum starts with
        if "m" in place.delta._parameters:
            V = matrix(place.site) + place.method.scale * place.method.product(place.delta.live())
            place.delta.m.data.copy_(torch.linalg.vector_norm(V, dim=1))
    return adapter


@torch.no_grad()
def alternate(
    W: Tensor, rank: int, *, steps: int = 5, quantise: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, A, B) with Q + B A near W (out, in), after so many alternations.

    Give Q to the quantiser as the base's weights (quantising it again leaves it as it is), then
    attach, and start with `loftq(model, floats)`. `quantise` gives the values that codes stand for;
    left out, `nf4`.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    if W.ndim != 2 or not 1 <= rank <= min(W.shape):
        raise InputError(f"a rank from 1 to the smaller side of W {tuple(W.shape)}, not {rank}")
    W = W.to(torch.float32)
    A, B = W.new_zeros(rank, W.shape[1]), W.new_zeros(W.shape[0], rank)
    for _ in range(steps):
        Q = (quantise or nf4)(W - B @ A)
        A, B = halves(*svd(W - Q, rank), 1.0)
    return Q, A, B


def nf4(W: Tensor, block: int = 64) -> Tensor:
    """The values nearest to W that 4-bit NormalFloat has (Dettmers et al. 2023, arXiv:2305.14314):
    quantiles of a normal distribution, times the largest of each block of so many values."""
    if block < 1:
        raise InputError(f"block must be at least 1, not {block}")
    flat = W.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    largest = padded.abs().amax(1, keepdim=True)
    codes = _codes().to(W)
    borders = (codes[1:] + codes[:-1]) / 2
    nearest_code = codes[torch.bucketize(padded / largest.clamp_min(1e-30), borders)]
    return (nearest_code * largest).flatten()[: len(flat)].view_as(W)


def _codes() -> Tensor:
    """The 16 values of NF4, in [-1, 1], zero among them."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(end, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(end, 0.5, 8)[:-1])
    codes = torch.cat([negative, torch.zeros(1), positive]).sort().values
    return codes / codes.max()
