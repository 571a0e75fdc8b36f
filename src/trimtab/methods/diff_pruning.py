"""Diff pruning: Parameter-Efficient Transfer Learning with Diff Pruning. Guo, Rush and Kim 2021,
arXiv:2012.07463.

    W' = W + z ∘ δ,   z = min(1, max(0, s (r - l) + l)),   s = σ(logit(u) + a)

While training, u is drawn uniformly and z is a relaxed mask (hard concrete, Louizos 2018), whose
expected L0 norm σ(a - log(-l / r)) joins the loss; at evaluation s = σ(a). At the end the `budget`
of largest |z δ| is kept, and the rest is zero. δ starts at zero: the start is the base.

Use it where what a task changes should be a sparse difference of few values. While it trains it
holds two tensors of the size of each site's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.method import Additive, Param, Values, option
from trimtab.core.site import Site

_LEFT, _RIGHT = -1.5, 1.5
_SURE = 100.0  # of which the sigmoid is 0 or 1, and its gradient 0


@dataclass(frozen=True, kw_only=True)
class DiffPruning(Additive):
    """A sparse change of the weights. It takes a loop that calls `after_backward` at each step."""

    name = "diff-pruning"
    paper = "arXiv:2012.07463"
    learning_rate = 1e-3

    budget: float = option(
        0.005, "share of the weights, over all sites, whose change is kept, in (0, 1]"
    )
    l0: float = option(1.25e-7, "λ, weight of the expected L0 norm in the loss, for each weight")
    groups: str = option(
        "none", 'one more mask for each "row" or "matrix", which prunes it whole, or "none"'
    )
    refine: float = option(
        0.0, "share of the steps, at the end, that trains only what was kept, in [0, 1)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("budget", 0 < self.budget <= 1, "lie in (0, 1]")
        self.require("l0", self.l0 >= 0, "be at least 0")
        self.require("groups", self.groups in _GROUPS, f"be one of {', '.join(_GROUPS)}")
        self.require("refine", 0 <= self.refine < 1, "lie in [0, 1)")

    def init(self, site: Site) -> dict[str, Param]:
        shape = (site.out_features, site.in_features)
        p = {"delta": Param(torch.zeros(shape)), "a": Param(torch.full(shape, 5.0), exact=True)}
        if self.groups == "none":
            return p
        group = (1, 1) if self.groups == "matrix" else (shape[0], 1)
        return {**p, "g": Param(torch.full(group, 5.0), exact=True)}

    def _masks(self, p: Values) -> list[Tensor]:
        """The logits of an entry's masks: its own, and its group's."""
        return [p.tensors[name] for name in ("a", "g") if name in p.tensors]

    def mask(self, p: Values) -> Tensor:
        """z, whose part of each group is the product of both masks."""
        z = torch.ones((), device=p.a.device)
        for logit in self._masks(p):
            if p.training:
                logit = logit + torch.rand_like(logit).clamp(1e-6, 1 - 1e-6).logit()
            z = z * (logit.sigmoid() * (_RIGHT - _LEFT) + _LEFT).clamp(0, 1)
        return z

    def delta(self, p: Values) -> Tensor:
        return self.mask(p) * p.tensors["delta"]

    def penalty(self, p: Values) -> Tensor | None:
        chance = torch.ones((), device=p.a.device)  # log(-l / r) is 0
        for logit in self._masks(p):
            chance = chance * logit.sigmoid()
        return self.l0 * chance.sum() if self.l0 else None

    def after_backward(self, sites: Mapping[str, Values], step: int, total: int) -> None:
        if step != total - int(self.refine * total):
            return
        changes = {name: self.delta(_still(p)) for name, p in sites.items()}
        sizes = torch.cat([change.abs().flatten() for change in changes.values()])
        kept = torch.zeros_like(sizes, dtype=torch.bool)
        kept[sizes.topk(round(self.budget * sizes.numel())).indices] = True
        each = kept.split([change.numel() for change in changes.values()])
        for (name, p), keep in zip(sites.items(), each, strict=True):
            keep = keep.view_as(p.a)
            p.tensors["delta"].copy_(torch.where(keep, changes[name], 0))
            for logit in self._masks(p):
                logit.fill_(_SURE)
            p.a.masked_fill_(~keep, -_SURE)


_GROUPS = ("none", "matrix", "row")


def _still(p: Values) -> Values:
    """The same at evaluation: no mask is drawn."""
    return Values(p.tensors, False, p.site, p.index, p.total, p.shared)
