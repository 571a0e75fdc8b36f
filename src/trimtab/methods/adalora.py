"""AdaLoRA: Adaptive Budget Allocation. Zhang et al. 2023, arXiv:2303.10512.

    W' = W + (alpha / r) P diag(λ ∘ mask) Q,   P (out, r), Q (r, in), λ (r,)

Triplets (a value and its two vectors) that matter least to the loss, over all sites together, are
masked, until `target` a site are left on average. A penalty draws P and Q to be orthogonal.

Use it where a fixed budget of ranks should go to the sites that matter most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.errors import StateError
from trimtab.core.method import Additive, Names, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site
from trimtab.methods._peft_adalora import ADALORA_NAMES


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Additive):
    """Low-rank updates whose ranks are found while training: the budget falls, as a cubic, from
    `rank` to `target` triplets a site. It takes a loop that calls `after_backward`."""

    name = "adalora"
    paper = "arXiv:2303.10512"
    learning_rate = 9e-3
    hf: ClassVar[Names | None] = ADALORA_NAMES

    rank: int = option(12, "r, triplets a site at the start")
    target: int = option(8, "triplets a site at the end, on average over the sites")
    alpha: float = option(16.0, "numerator of the scale alpha / r")
    tinit: int = option(0, "tᵢ, steps before the budget begins to fall")
    tfinal: int = option(0, "t_f, steps at the end in which the budget stays as it is")
    interval: int = option(1, "ΔT, steps from one allotment of the budget to the next")
    beta1: float = option(0.85, "β₁, share of the past in the smoothed importance, in (0, 1)")
    beta2: float = option(0.85, "β₂, share of the past in its smoothed variation, in (0, 1)")
    orthogonality: float = option(
        0.5, "γ, weight of the penalty that draws P and Q to be orthogonal"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("rank", "interval"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        self.require("target", 0 <= self.target <= self.rank, f"lie in [0, {self.rank}], the rank")
        for field in ("tinit", "tfinal", "orthogonality"):
            self.require(field, getattr(self, field) >= 0, "be at least 0")
        self.require("beta1", 0 < self.beta1 < 1, "lie in (0, 1)")
        self.require("beta2", 0 < self.beta2 < 1, "lie in (0, 1)")

    def init(self, site: Site) -> dict[str, Param]:
        P, Q = torch.empty(site.out_features, self.rank), torch.empty(self.rank, site.in_features)
        p = {name: Param(nn.init.normal_(one, std=0.02)) for name, one in {"P": P, "Q": Q}.items()}
        p["E"] = Param(torch.zeros(self.rank))
        state = {"mask": Param(torch.ones(self.rank), trained=False)}
        for name, one in p.items():
            for kind in ("mean", "spread"):
                state[f"{name}_{kind}"] = Param(torch.zeros_like(one.value), trained=False)
        return p | state

    def _scaled(self, p: Values) -> Tensor:  # the gradient is λ's own: what is masked may return
        return self.alpha / self.rank * (p.E - (p.E * (1 - p.mask)).detach())

    def delta(self, p: Values) -> Tensor:
        return p.P @ (self._scaled(p)[:, None] * p.Q)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return linear(linear(x, p.Q) * self._scaled(p), p.P)

    def penalty(self, p: Values) -> Tensor | None:
        grams = torch.stack([p.P.mT @ p.P, p.Q @ p.Q.mT])
        off = torch.linalg.matrix_norm(grams - torch.eye(self.rank, device=grams.device))
        return self.orthogonality * off.mean() / p.total if self.orthogonality else None

    def after_backward(self, sites: Mapping[str, Values], step: int, total: int) -> None:
        last = total - self.tfinal
        self.require("tinit", self.tinit < last, f"be less than {last}, of {total} steps")
        if step < last:
            self._observe(sites)
        if allot := step == last or (self.tinit < step < last and step % self.interval == 0):
            self._allot(sites, (1 - (step - self.tinit) / (last - self.tinit)) ** 3)
        for p in sites.values():
            p.E.mul_(p.mask)
            if step < last and not allot:
                p.mask.fill_(1)

    def _observe(self, sites: Mapping[str, Values]) -> None:
        """How much the loss depends on each number, smoothed, and how much that varies."""
        if all(p.tensors[name].grad is None for p in sites.values() for name in "PQE"):
            raise StateError("adalora: no gradients: call after_backward before they are cleared")
        for p in sites.values():
            for name in "PQE":
                tensor, mean = p.tensors[name], p.tensors[f"{name}_mean"]
                now = (tensor * (0 if tensor.grad is None else tensor.grad)).abs()
                mean.lerp_(now, 1 - self.beta1)
                p.tensors[f"{name}_spread"].lerp_((now - mean).abs(), 1 - self.beta2)

    def _allot(self, sites: Mapping[str, Values], above: float) -> None:
        """Mask all triplets but those that matter most: of what lies between the first budget and
        the last, the share `above` is left."""
        scores = [_score(p) for p in sites.values()]
        every = torch.cat([score.flatten() for score in scores])
        count, end = every.numel(), self.target * (every.numel() // self.rank)
        gone = count - int((count - end) * above + end)
        least = every.kthvalue(gone).values if gone else every.min() - 1
        for score, p in zip(scores, sites.values(), strict=True):
            p.mask.copy_(score > least)


def _score(p: Values) -> Tensor:  # of each triplet: its value's importance, its vectors' mean one
    P, Q, E = (p.tensors[f"{n}_mean"] * p.tensors[f"{n}_spread"] for n in "PQE")
    return E + P.mean(-2) + Q.mean(-1)
