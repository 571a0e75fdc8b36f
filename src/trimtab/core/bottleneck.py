"""The bottleneck that many interventions share: down to few dimensions, a nonlinearity, and up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core.draw import kaiming
from trimtab.core.errors import InputError
from trimtab.core.method import Dropout, Intervention, Param, Values, option
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
class Bottleneck(Dropout, Intervention):
    """added(z) = s (U σ(D z + d) + u), of a width m.

    U starts at zero, unless `init_std` asks for the near-identity of Houlsby 2019: D and U from a
    normal distribution of that deviation, cut at two of them.
    """

    width: int = option(64, "m, the features inside the bottleneck")
    reduction: float | None = option(
        None,
        "the site's features over the bottleneck's, d / m, in the place of `width`; None: `width`",
    )
    activation: str = option(
        "relu", 'σ: "relu", "gelu", "silu", "tanh", "leaky_relu" or "identity"'
    )
    scale: float = option(1.0, "s, by which what is added is multiplied")
    dropout: float = option(0.0, "share of σ's outputs left out in training, in [0, 1)")
    init_std: float = option(
        0.0,
        "standard deviation of D and U at the start; 0: U is zero, so that it starts at the base",
    )

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
        self.require_use("width", given is None, f"with reduction=None, and that is {given!r}")
        self.require("init_std", self.init_std >= 0, "not be negative")

    def m(self, site: Site) -> int:
        """The bottleneck's width at a site."""
        if self.reduction is None:
            return self.width
        return max(1, int(site.out_features / self.reduction))

    def init(self, site: Site) -> dict[str, Param]:
        m, d = self.m(site), site.out_features
        U = torch.zeros(d, m)
        D = torch.zeros(m, d) if self.init_std else kaiming(m, d)
        for matrix in (D, U) if self.init_std else ():
            cut = 2 * self.init_std
            nn.init.trunc_normal_(matrix, std=self.init_std, a=-cut, b=cut)
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
