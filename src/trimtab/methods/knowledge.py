"""K-Adapter: Infusing Knowledge into Pre-Trained Models with Adapters. Wang et al. 2020,
arXiv:2002.01808.

    aᵢ = hᵢ + Uᵢ t(Dᵢ [hᵢ; aᵢ₋₁]),   y' = y + O aₘ

A network beside the base reads what some of its blocks give, h₁ … hₘ, each through a projection, a
few narrow transformer layers t and a projection back. One such adapter learns one source of
knowledge; several stand side by side and are put together by `Fuse`. The paper hands [y; aₘ] to a
head of the task; here O, zero at the start, adds aₘ to y, so that the model's own head goes on.

Use it where facts from several sources are learnt one by one and must not disturb each other or the
base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.layout import runs
from trimtab.core.method import Beside, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Knowledge(Beside):
    """An adapter beside the base, with transformer layers of its own. It starts at the base."""

    name = "knowledge"
    paper = "arXiv:2002.01808"
    learning_rate = 1e-4

    reads: int = option(3, "m, blocks that it reads, from the first to the last; of fewer, all")
    width: int = option(64, "features inside it, a multiple of `heads`")
    layers: int = option(2, "narrow transformer layers at each block that it reads")
    heads: int = option(4, "attention heads of those layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("reads", "width", "layers", "heads"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        self.require("width", self.width % self.heads == 0, f"be a multiple of heads={self.heads}")

    def settled(self, site: Site) -> Knowledge:
        blocks = len(runs(site.module)[0].blocks)
        return self if self.reads <= blocks else replace(self, reads=blocks)

    def init(self, site: Site) -> dict[str, Param]:
        d, w, m = site.out_features, self.width, self.reads
        causal = any(_causal(one) for one in site.module.modules())

        def maps(*shape: int) -> Param:
            return Param(torch.randn(shape) / math.sqrt(shape[-1]))

        return {
            "D": maps(m, w, 2 * d),
            "qkv": maps(m, self.layers, 3 * w, w),
            "out": maps(m, self.layers, w, w),
            "up": maps(m, self.layers, 4 * w, w),
            "down": maps(m, self.layers, w, 4 * w),
            "U": maps(m, d, w),
            "O": Param(torch.zeros(d, d)),
            "causal": Param(torch.tensor(causal), trained=False),
        }

    def edit(self, p: Values, taps: Sequence[Tensor], y: Tensor, call: Call) -> Tensor:
        if call.past.get(p.site.name):
            raise InputError(
                "knowledge: its transformer layers read all positions, which a cache does not keep "
                "for them: generate with use_cache=False"
            )
        m, visible = len(p.D), self._visible(p, y, call)
        chosen = [round(i * (len(taps) - 1) / max(1, m - 1)) for i in range(m)]
        a = torch.zeros_like(y)
        for i, tap in enumerate(taps[block] for block in chosen):
            h = tap.detach()
            z = linear(torch.cat([h, a], dim=-1), p.D[i])
            for k in range(self.layers):
                z = z + self._attend(_norm(z), p.qkv[i, k], p.out[i, k], visible)
                z = z + linear(F.gelu(linear(_norm(z), p.up[i, k])), p.down[i, k])
            a = h + linear(z, p.U[i])
        return y + linear(a, p.O)

    def _visible(self, p: Values, y: Tensor, call: Call) -> Tensor:
        """(batch or 1, 1, positions, positions): True where one may look."""
        before = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=y.device).tril()
        mask = call.mask(p.site.name, y)
        seen = (before | ~p.causal)[None, None]
        own = torch.eye(y.shape[1], dtype=torch.bool, device=y.device)  # no row sees nothing
        return seen if mask is None else (seen & mask.bool()[:, None, None, :]) | own

    def _attend(self, z: Tensor, qkv: Tensor, out: Tensor, visible: Tensor) -> Tensor:
        q, k, v = linear(z, qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return linear(
            F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).flatten(2), out
        )


def _norm(z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:])


def _causal(module: torch.nn.Module) -> bool:
    return getattr(module, "is_causal", False) is True
