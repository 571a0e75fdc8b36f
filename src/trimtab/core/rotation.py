"""Rotations in blocks on the diagonal, by their difference D = R - I from the identity: what is
small is kept apart from the one that would hide it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
