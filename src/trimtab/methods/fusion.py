"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning. Pfeiffer et al. 2021,
arXiv:2005.00247.

    s = softmax(Q h · K zᵢ / T),   h' = Σ sᵢ V zᵢ

Attention, at every site, of the base's output h over what each of several trained adapters makes of
it, zᵢ; those stay as they are, so that no task is forgotten. V starts at the identity and is held
near it by λ ‖V - I‖², so that the mixture starts out as a mean of the adapters and stays a mixture.

Use it where adapters were trained apart on several tasks, and a new task may draw on all of them:
attach it `over` their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Combine, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Fusion(Combine):
    """Learned attention over other adapters."""

    name = "fusion"
    paper = "arXiv:2005.00247"
    learning_rate = 5e-5
    starts_at_base: ClassVar[str | None] = "it starts at the mean of the adapters that it combines"

    temperature: float = option(
        1.0, "T of the softmax: a small one chooses among the adapters, a large one averages"
    )
    regularisation: float = option(0.01, "λ, weight of the penalty ‖V - I‖²")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("temperature", self.temperature > 0, "be above 0")
        self.require_use("temperature", len(self.over) != 1, "over several adapters")
        self.require("regularisation", self.regularisation >= 0, "not be negative")

    def init(self, site: Site) -> dict[str, Param]:
        d = site.out_features
        Q, K = (torch.randn(d, d) * 0.02 for _ in range(2))
        return {"Q": Param(Q), "K": Param(K), "V": Param(torch.eye(d))}

    def combine(self, p: Values, x: Tensor, y: Tensor, parts: list[Tensor], call: Call) -> Tensor:
        z = torch.stack(parts, dim=-2)
        q = linear(linear(y, p.Q), p.K.mT)  # Kᵀ Q h: K acts once, V after the sum
        s = ((q[..., None, :] * z).sum(-1) / self.temperature).softmax(-1)
        return linear((s[..., None] * z).sum(-2), p.V)

    def penalty(self, p: Values) -> Tensor | None:
        if not self.regularisation:
            return None
        identity = torch.eye(p.V.shape[0], dtype=p.V.dtype, device=p.V.device)
        return self.regularisation * (p.V - identity).square().sum()
