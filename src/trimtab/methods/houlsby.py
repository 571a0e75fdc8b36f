"""Adapters: Parameter-Efficient Transfer Learning for NLP. Houlsby et al. 2019, arXiv:1902.00751.

    h' = h + s (U σ(D h + d) + u),   D (m, d), U (d, m), after attention and after feed-forward

The sublayers' outputs are adapted before the residual is added. U and u start at zero, so that the
adapted model starts at the base; `init_std=0.01` is the paper's near-identity.

Use it where capacity counts more than latency: a nonlinear step after each sublayer, which cannot
be merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.method import Param, Values, option
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Houlsby(Bottleneck):
    """A bottleneck after each sublayer; `norm` puts a trained LayerNorm before it."""

    name = "houlsby"
    paper = "arXiv:1902.00751"

    activation: str = "gelu"
    norm: bool = option(False, "a trained LayerNorm before D")

    def init(self, site: Site) -> dict[str, Param]:
        params = super().init(site)
        if self.norm:
            d = site.out_features
            params |= {"gain": Param(torch.ones(d), exact=True), "shift": Param(torch.zeros(d))}
        return params

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        z = y
        if self.norm:
            z = F.layer_norm(y, y.shape[-1:], p.gain.to(y.dtype), p.shift)
        return y + self.added(p, z)
