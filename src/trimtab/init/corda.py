"""CorDA: Context-Oriented Decomposition Adaptation of Large Language Models. Yang et al. 2024,
arXiv:2406.05223.

    C = Σ xᵀ x / n,   U S Vᵀ = W C,   s B₀ A₀ = U_r S_r V_rᵀ C⁻¹,   √S to each;
    W' = W + s (B A - B₀ A₀)

C is the covariance of the site's inputs on data. Mode "ipm" trains the leading r components: data
of the new task. Mode "kpm" trains the last r, and so leaves what the data asks for: data of the
knowledge to keep. As for PiSSA the base stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import anchored, halves, matrix, places, plainly, require_rank, settle
from trimtab.init.observe import base_alone, watch


@torch.no_grad()
def corda(
    model: nn.Module, batches: Iterable[object], name: str | None = None, *, mode: str = "ipm"
) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at what its inputs make of its
    weights; `batches` is gone over once."""
    if mode not in ("ipm", "kpm"):
        raise InputError(f"mode is 'ipm' (the new task) or 'kpm' (knowledge to keep), not {mode!r}")
    adapter, found = places(model, name)
    plainly(found, "CorDA looks at inputs")
    for place in found:
        require_rank(place, place.method.rank)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def take(site: str, x: Tensor) -> None:
        x = x.float()
        x = x / x.max().abs()  # or large inputs would overflow, and outweigh all others
        sums[site] = sums.get(site, 0) + x.mT @ x
        counts[site] = counts.get(site, 0) + 1

    with base_alone(model):
        for batch in batches:
            watch(model, found, batch, take)
    starts = []
    for place in found:
        site, rank, scale = place.site, place.method.rank, place.method.scale
        if site.name not in sums or not sums[site.name].isfinite().all():
            raise InputError(f"{site.name!r} saw no inputs, or some that are not finite")
        starts.append(
            anchored(
                place,
                *oriented(matrix(site), sums[site.name] / counts[site.name], rank, scale, mode),
            )
        )
    return settle(adapter, starts)


def oriented(W: Tensor, C: Tensor, rank: int, scale: float, mode: str) -> tuple[Tensor, Tensor]:
    """(A, B) of W's components as the covariance C orders them."""
    C, inverse = _inverted(C)
    U, S, V = torch.linalg.svd(W @ C, full_matrices=False)
    part = slice(0, rank) if mode == "ipm" else slice(len(S) - rank, None)
    return halves(U[:, part], S[part], V[part] @ inverse, scale)


def _inverted(C: Tensor) -> tuple[Tensor, Tensor]:
    """(C, C⁻¹), the diagonal raised by as much of its mean as the inverse needs."""
    one, damping = torch.eye(len(C), device=C.device), 0.01
    for _ in range(40):
        raised = C + damping * C.diagonal().mean() * one
        inverse = torch.linalg.inv(raised)
        if torch.dist(raised @ inverse, one) < 0.05:
            return raised, inverse
        damping *= 2
    raise InputError("the covariance of the inputs cannot be inverted: they are all zero")
