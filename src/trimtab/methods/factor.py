"""Low-rank factors of the weight itself. Meng, Wang and Zhang 2024 (PiSSA), arXiv:2404.02948.

    W ≈ U0 V0, the truncated singular value decomposition, √Σ on either side
    W' = W + U V - U0 V0   (residual frozen),   W' = U V   (residual dropped)

What is trained is what matters most of W, not noise and zeros as in LoRA. With the residual frozen
the adapted model starts at the base, and other formats hold it as LoRA of rank 2 r. Without it the
map is compressed: W is not used any more.

Use it where a weight is to be compressed (`residual="dropped"`), or trained along its own principal
directions (`"frozen"`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.lowrank import difference
from trimtab.core.method import Method, Param, Transform, Values, option
from trimtab.core.operator import Operator, Patches, linear
from trimtab.core.registry import build
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Factor(Transform):
    """The leading singular triplets of W, as two trained factors."""

    name = "factor"
    paper = "arXiv:2404.02948"
    kinds = frozenset({"linear", "embedding", "conv"})
    learning_rate = 2e-4

    rank: int = option(16, "r, singular triplets that train")
    energy: float = option(
        0.0, "share of the squared singular values to hold, in the place of `rank`; 0: `rank`"
    )
    residual: str = option(
        "frozen", 'what is beyond the triplets: "frozen", or "dropped" for compression'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rank", self.rank >= 1, "be at least 1")
        self.require("energy", 0 <= self.energy <= 1, "lie in [0, 1]")
        self.require_use("rank", not self.energy, "with energy=0, which chooses the ranks here")
        self.require("residual", self.residual in ("frozen", "dropped"), "be frozen or dropped")

    @property
    def starts_at_base(self) -> str | None:  # type: ignore[override]
        return "what is beyond the rank is dropped" if self.residual == "dropped" else None

    def accepts(self, site: Site) -> str | None:
        several = "its matrices would differ in rank: choose `rank` in the place of `energy`"
        return super().accepts(site) or (several if self.energy and site.geometry.count else None)

    def readied(self) -> Factor:
        return self if self.energy else replace(self, rank=min(self.rank, 4))

    def init(self, site: Site) -> dict[str, Param]:
        W = site.matrix
        U, S, V = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), False)
        r, frozen = self._rank(S), self.residual == "frozen"
        if r > len(S):
            raise InputError(
                f"factor: rank is {r}, and {site.name!r}, {site.out_features} x "
                f"{site.in_features}, has {len(S)} singular values: lower it there, by a plan"
            )
        half = S[:r].sqrt()
        start = {"U": U[:, :r] * half, "V": half[:, None] * V[:r]}
        fixed = {f"{name}0": Param(t.clone(), False, exact=True) for name, t in start.items()}
        trained = {name: Param(t, exact=frozen) for name, t in start.items()}
        return trained | (fixed if frozen else {})

    def _rank(self, S: Tensor) -> int:
        if not self.energy:
            return self.rank
        held = S.double().square().cumsum(0)
        return min(int((held < self.energy * held[-1]).sum()) + 1, len(S))

    def _factors(self, p: Values, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B, whose product joins W, of rank 2 r, or stands in its place."""
        if self.residual == "frozen":
            return difference(p.V, p.U, p.V0, p.U0, dtype)
        return p.V.to(dtype), p.U.to(dtype)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        A, B = self._factors(p, W.dtype)
        return W + B @ A if self.residual == "frozen" else B @ A, b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        gain, dtype = inner.geometry.gain, x.dtype if x.dtype.is_floating_point else inner.dtype
        A, B = self._factors(p, dtype)
        grouped = isinstance(x, Patches) and x.module.groups > 1
        y = gain * (linear(x, B @ A) if grouped else linear(linear(x, A), B))
        base = inner(x) if self.residual == "frozen" else inner.bias
        return y if base is None else (base + y).to(base.dtype)

    def alike(self, p: Values) -> tuple[Method, dict[str, Tensor]] | None:
        if self.residual == "dropped":
            return None
        A, B = self._factors(p, p.U.dtype)
        rank = A.shape[-2]
        return build("lora", {"rank": rank, "alpha": float(rank)}), {"A": A, "B": B}
