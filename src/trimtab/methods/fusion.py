"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning. Pfeiffer et al. 2021,
arXiv:2005.00247.

    s = softmax(Q h · K zᵢ),   h' = Σ sᵢ V zᵢ

Attention, at every site, of the base's output h over what each of several trained adapters makes of
it, zᵢ; those stay as they are. V starts at the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Combine, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Fusion(Combine):
    """Learned attention over the adapters named by `over`."""

    name = "fusion"
    paper = "arXiv:2005.00247"
    learning_rate = 5e-5

    def init(self, site: Site) -> dict[str, Param]:
        d = site.out_features
        Q, K = (torch.randn(d, d) * 0.02 for _ in range(2))
        return {"Q": Param(Q), "K": Param(K), "V": Param(torch.eye(d))}

    def combine(self, p: Values, x: Tensor, y: Tensor, parts: list[Tensor], call: Call) -> Tensor:
        z = torch.stack(parts, dim=-2)
        scores = (linear(y, p.Q)[..., None, :] * linear(z, p.K)).sum(-1)
        return (scores.softmax(-1)[..., None] * linear(z, p.V)).sum(-2)
