"""CoDA: Conditional Adapters, Lei et al. 2023, arXiv:2304.04947.

    yᵢ = xᵢ + s (U σ(D xᵢ + d) + u) + λᵢ (f(X_k)ᵢ - xᵢ),   λ = soft top-k of the scores w · xᵢ

A router picks k of the tokens: those go through the frozen block f, among themselves; all go
through the adapter. λ is zero where a token is not picked, and carries the router's gradient: it is
what maximises λ · s + ε H(λ) with entries of at most one that sum to k. With k all, λ is one.

Use it where the time of inference counts more than the last point of quality, over long inputs that
are read and not generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Values, option
from trimtab.core.operator import Operator, linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class CoDA(Bottleneck):
    """One token in `of` goes through each block. In a causal model the choice looks ahead, so that
    it is for reading, such as classification, and generates only without a cache."""

    name = "coda"
    by_example = True
    paper = "arXiv:2304.04947"
    learning_rate = 3e-3
    targets = ("block",)
    kinds = frozenset({"block"})
    starts_at_base = "only some of the tokens go through each block"

    of: float = option(3.0, "tokens of which one goes through each block: n / k, at least 1")
    epsilon: float = option(1.0, "ε, weight of the entropy of λ: the larger, the softer the choice")
    steps: int = option(20, "iterations that find λ; the smaller ε, the more it takes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of < 1 or self.epsilon <= 0 or self.steps < 1:
            raise InputError("coda: of and steps must be at least 1, and epsilon above 0")
        for field in ("epsilon", "steps"):
            self.require_use(field, self.of > 1, "where of is above 1: λ is one for all tokens")

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is not None:
            return reason
        for module in site.module.modules():
            if hasattr(module, "relative_attention_bias"):
                return "it computes the position biases of all its tokens, which other blocks use"
            if getattr(module, "batch_first", True) is False:
                return "its first dimension is the positions' and not the batch's: use batch_first"
        return None

    def init(self, site: Site) -> dict[str, Param]:
        w = 0.02 * torch.randn(site.out_features)  # larger scores saturate λ, and teach nothing
        return {**super().init(site), "w": Param(w, exact=True)}

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y + self.added(p, x)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if call.cached.get(p.site.stack or ""):
            raise InputError(
                "coda keeps no keys and values of the tokens that it leaves out: call the model, "
                "or generate, with use_cache=False"
            )
        if x.ndim != 3:
            raise InputError(f"coda acts on (batch, positions, width), not on {tuple(x.shape)}")
        scores = linear(x.to(p.w.dtype), p.w[None])[..., 0]
        mask = call.mask(p.site.stack, x)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e4)
        k = math.ceil(x.shape[1] / self.of)
        index = scores.topk(k, dim=1).indices.sort(dim=1).values
        gates = (
            soft_top_k(scores, k, self.epsilon, self.steps).gather(1, index)[..., None].to(x.dtype)
        )
        wide = index[..., None].expand(-1, -1, x.shape[2])
        some = x.gather(1, wide)
        changed = gates * (inner.narrowed(None, index)(some) - some)
        return self.edit(p, x, x.scatter_add(1, wide, changed.to(x.dtype)), call).to(x.dtype)


def soft_top_k(scores: Tensor, k: int, epsilon: float, steps: int) -> Tensor:
    """λ (batch, n) in [0, 1] of sum k, by ascent of the dual: a for the sum, b for the bounds. The
    smaller ε, the more steps it takes."""
    if k >= scores.shape[1]:
        return torch.ones_like(scores)
    b = -scores
    for _ in range(steps):
        a = epsilon * (math.log(k) - torch.logsumexp((scores + b) / epsilon, 1, keepdim=True))
        b = torch.clamp(-scores - a, max=0)
    return torch.exp((scores + a + b) / epsilon)
