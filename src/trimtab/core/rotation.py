"""Orthogonal maps of an input's features: rotations in blocks, butterflies of them, reflections.
Each is kept as its difference from the identity: what is small is kept apart from the one that
would hide it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.core.site import Site


def width(site: Site) -> int:
    """How many features are turned: those of the input; of an embedding, its output's."""
    return site.out_features if site.geometry.kind == "embedding" else site.in_features


def skew(s: Tensor) -> Tensor:
    """S = -Sᵀ (blocks, b, b) of what stands above its diagonal, row by row: (blocks, b (b-1)/2)."""
    b = (1 + math.isqrt(1 + 8 * s.shape[-1])) // 2
    place = torch.zeros(b, b, dtype=torch.long, device=s.device)
    place[*torch.triu_indices(b, b, 1)] = torch.arange(s.shape[-1], device=s.device)
    upper = s[:, place].triu(1)
    return upper - upper.mT


def cayley(S: Tensor) -> Tensor:
    """(I - S)(I + S)⁻¹ - I."""
    one = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return torch.linalg.solve(one + S, -2 * S)


def cayley_neumann(S: Tensor, terms: int) -> Tensor:
    """2 S + 2 S² + … with the last power once: (I + S)(I - S)⁻¹ - I for small S."""
    D, power = 2 * S, S
    for _ in range(2, max(4, terms) - 1):
        power = power @ S
        D = D + 2 * power
    return D + power @ S if terms > 2 else 2 * S


def turned(x: Tensor, D: Tensor) -> Tensor:
    """x (I + D), block by block; one block may serve for all."""
    parts = x.unflatten(-1, (-1, D.shape[-1]))
    change = torch.einsum("...nk,nkj->...nj", parts, D.expand(parts.shape[-2], -1, -1))
    return x + change.flatten(-2)


def butterfly(x: Tensor, D: Tensor, back: bool = False) -> Tensor:
    """x B_m … B_1 for D (m, blocks, b, b), or x B_1ᵀ … B_mᵀ. The blocks of B_i + 1 join halves of
    blocks that lie 2^i apart, so that m of them reach across 2^m halves.
    """
    levels = range(len(D))
    for i in levels if back else reversed(levels):
        x = _joined(x, D[i].mT if back else D[i], 2**i)
    return x


def _joined(x: Tensor, D: Tensor, apart: int) -> Tensor:
    if apart == 1:
        return turned(x, D)
    half = D.shape[-1] // 2
    near = x.unflatten(-1, (-1, 2, apart, half)).transpose(-3, -2).flatten(-4)
    return turned(near, D).unflatten(-1, (-1, apart, 2, half)).transpose(-3, -2).flatten(-4)


def reflections(U: Tensor) -> tuple[Tensor, Tensor]:
    """(P, Q) with H_1 … H_r = I - P Qᵀ, H_i being the reflection along column i of U (n, r)."""
    Q = U / torch.linalg.vector_norm(U, dim=0)
    gram = Q.mT @ Q
    inverse = gram.triu(1) + torch.eye(len(gram), dtype=U.dtype, device=U.device) / 2
    return torch.linalg.solve_triangular(inverse, Q, upper=True, left=False), Q


def reflection(U: Tensor) -> tuple[Tensor, Tensor]:
    """(P, Q) with I - P Qᵀ the reflection of the whole span of U's columns."""
    Q = torch.linalg.qr(U).Q
    return 2 * Q, Q
