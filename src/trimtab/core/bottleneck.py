"""The bottleneck that many interventions share: down to few dimensions, a nonlinearity, and up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core.errors import InputError
from trimtab.core.method import Intervention, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "identity": lambda x: x,
}


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Intervention):
    """added(z) = scale (U σ(D z + d) + u), of a width m.

    m is `width`, or the site's own divided by `reduction` where that is given. `activation` is σ,
    `scale` multiplies what is added, `dropout` acts on what lies between D and U. U starts at zero,
    unless `init_std` asks for the near-identity of Houlsby 2019: D and U from a normal
    distribution of that deviation, cut at two of them.
    """

    width: int = 64
    reduction: float | None = None
    activation: str = "relu"
    scale: float = 1.0
    dropout: float = 0.0
    init_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"{self.name}: activation is one of {sorted(ACTIVATIONS)}, not {self.activation!r}"
            )
        self.require("width", self.width >= 1, "be at least 1")
        given = self.reduction
        numeric = isinstance(given, int | float) and not isinstance(given, bool)
        self.require("reduction", given is None or (numeric and given > 0), "be above 0")
        self.require("dropout", 0 <= self.dropout < 1, "lie in [0, 1)")
        self.require("init_std", self.init_std >= 0, "not be negative")

    def m(self, site: Site) -> int:
        """The bottleneck's width at a site."""
        if self.reduction is None:
            return self.width
        return max(1, int(site.out_features / self.reduction))

    def init(self, site: Site) -> dict[str, Param]:
        m, d = self.m(site), site.out_features
        D, U = torch.empty(m, d), torch.zeros(d, m)
        if self.init_std:
            for matrix in (D, U):
                cut = 2 * self.init_std
                nn.init.trunc_normal_(matrix, std=self.init_std, a=-cut, b=cut)
        else:
            nn.init.kaiming_uniform_(D, a=math.sqrt(5))
        biases = {"d": Param(torch.zeros(m)), "u": Param(torch.zeros(d))}
        return {"D": Param(D), "U": Param(U), **biases}

    def maps(self, p: Values) -> tuple[Tensor, Tensor]:
        """D (m, d) and U (d, m)."""
        return p.D, p.U

    def inside(self, p: Values, z: Tensor) -> tuple[Tensor, Tensor]:
        """σ(D z + d), and U."""
        D, U = self.maps(p)
        hidden = ACTIVATIONS[self.activation](linear(z, D, p.d))
        return F.dropout(hidden, self.dropout, p.training), U

    def added(self, p: Values, z: Tensor) -> Tensor:
        """What the bottleneck makes of z (…, d)."""
        hidden, U = self.inside(p, z)
        out = linear(hidden, U, p.u)
        return out if self.scale == 1 else self.scale * out


def kronecker_sum(A: Tensor, B: Tensor) -> Tensor:
    """Σᵢ Aᵢ ⊗ Bᵢ of A (n, a, b) and B (n, c, e): (a c, b e)."""
    summed = torch.einsum("iab,ice->acbe", A, B)
    return summed.reshape(A.shape[1] * B.shape[1], A.shape[2] * B.shape[2])
