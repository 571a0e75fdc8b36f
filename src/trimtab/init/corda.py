"""CorDA: Context-Oriented Decomposition Adaptation of Large Language Models. Yang et al. 2024,
arXiv:2406.05223.

    C = Σ xᵀ x / n,   U S Vᵀ = W C,   s B₀ A₀ = U_r S_r V_rᵀ C⁻¹,   √S to each;
    W' = W + s (B A - B₀ A₀)

C is the covariance of the site's inputs on data, of all positions alike. (HF PEFT divides each
batch by its largest value first: batches of small values then weigh as much as others.) Mode "ipm"
trains the leading r components: data of the new task. Mode "kpm" trains the last r, and so leaves
what the data asks for: data of the knowledge to keep. As for PiSSA the base stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.init.begin import anchored, halves, matrix, places, plainly, require_rank, settle
from trimtab.init.observe import base_alone, several, watch


@torch.no_grad()
def corda(
    model: nn.Module, batches: Iterable[object], name: str | None = None, *, mode: str = "ipm"
) -> Adapter:
    """Start an attached adapter (the only one, if no name is given) at what its inputs make of its
    weights; `batches` is gone over once."""
    if mode not in ("ipm", "kpm"):
        raise InputError(f"mode is 'ipm' (the new task) or 'kpm' (knowledge to keep), not {mode!r}")
    batches = several(batches)
    adapter, found = places(model, name)
    plainly(found, "CorDA looks at inputs")
    for place in found:
        require_rank(place, place.method.rank)
    seen = {place.site.name: Covariance() for place in found}

    def take(site: str, x: Tensor) -> None:
        seen[site].take(x)

    with base_alone(model):
        for batch in batches:
            watch(model, found, batch, take)
    starts = []
    for place in found:
        site, method, own = place.site, place.method, seen[place.site.name]
        if not own.rows or not own.sum.any() or not own.sum.isfinite().all():
            raise InputError(
                f"{site.name!r} saw no inputs, none but zeros, or some that are not finite"
            )
        A, B = oriented(matrix(site), own.sum / own.rows, method.rank, method.scale, mode)
        starts.append(anchored(place, A / own.unit, B * own.unit))  # as of C itself
    return settle(adapter, starts)


class Covariance:
    """Σ xᵀ x over all rows, over the square of a unit: a power of two no smaller than the largest
    number seen, so that no square overflows and nothing is rounded by it."""

    def __init__(self) -> None:
        self.rows, self.unit, self.sum = 0, 1.0, torch.zeros(())

    def take(self, x: Tensor) -> None:
        x, largest = x.float(), float(x.abs().max()) if x.numel() else 0.0
        unit = 2.0 ** math.frexp(largest)[1] if math.isfinite(largest) else math.inf
        if not self.rows or unit > self.unit:
            self.sum, self.unit = self.sum.to(x.device) * (self.unit / unit) ** 2, unit
        x = x / self.unit
        self.sum = self.sum + x.mT @ x
        self.rows += len(x)


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
