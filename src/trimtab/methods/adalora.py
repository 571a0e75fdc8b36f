"""AdaLoRA: Adaptive Budget Allocation. Zhang et al. 2023, arXiv:2303.10512.

    W' = W + (alpha / r) P diag(λ ∘ mask) Q,   P (out, r), Q (r, in), λ (r,)

While training, the triplets (a value and its two vectors) that matter least to the loss, over all
sites together, are masked, until `target` a site are left on average. λ starts at zero, P and Q at
small random values; a penalty draws them to be orthogonal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError, StateError
from trimtab.core.method import Additive, Fields, Names, Param, Values
from trimtab.core.operator import linear
from trimtab.core.site import Site

_NAMES = {"P": "lora_B", "Q": "lora_A", "E": "lora_E"}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Its scale is that of rank one where alpha is none; how many steps there were is not kept."""
    found = {key: config[key] for key in ("tinit", "tfinal") if key in config}
    alpha = config.get("lora_alpha", 8)
    return found | {"alpha": alpha if alpha > 0 else config.get("init_r", 12)}


def _write(method: Any) -> dict[str, Any]:
    """Steps there must leave one between the first and the last."""
    steps = {"tinit": method.tinit, "tfinal": method.tfinal}
    return {"lora_alpha": method.alpha, **steps, "total_step": sum(steps.values()) + 1}


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Additive):
    """Low-rank updates whose ranks are found while training: from `rank` to `target` on average.

    The budget falls, as a cubic, after the first `tinit` steps and until `tfinal` are left, every
    `interval` steps. `beta1` and `beta2` smooth the importance and its variation, `orthogonality`
    weighs the penalty. It takes a loop that calls `after_backward` at each step."""

    name = "adalora"
    paper = "arXiv:2303.10512"
    hf: ClassVar[Names | None] = Names(
        peft_type="ADALORA",
        tensors=_NAMES,
        fields={
            "rank": "init_r",
            "target": "target_r",
            "dropout": "lora_dropout",
            "interval": "deltaT",
            "beta1": "beta1",
            "beta2": "beta2",
            "orthogonality": "orth_reg_weight",
        },
        transposed=True,
        biases="lora_only",
        tokens=True,
        at={"conv": _NAMES},
        patterns=(),
        columns=("E",),
        state=[f"{name}_{kind}" for name in "PQE" for kind in ("mean", "spread")],
        masked={"P": 1, "Q": 0, "E": 0},
        more=Fields(("lora_alpha", "tinit", "tfinal", "total_step", "r"), _read, _write),
    )

    rank: int = 12
    target: int = 8
    alpha: float = 16.0
    tinit: int = 0
    tfinal: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("rank", "interval"):
            self.require(field, getattr(self, field) >= 1, "be at least 1")
        self.require("target", 0 <= self.target <= self.rank, f"lie in [0, {self.rank}], the rank")
        for field in ("tinit", "tfinal", "orthogonality"):
            self.require(field, getattr(self, field) >= 0, "be at least 0")
        for field in ("beta1", "beta2"):
            self.require(field, 0 < getattr(self, field) < 1, "lie in (0, 1)")

    def init(self, site: Site) -> dict[str, Param]:
        P, Q = torch.empty(site.out_features, self.rank), torch.empty(self.rank, site.in_features)
        p = {name: Param(nn.init.normal_(one, std=0.02)) for name, one in {"P": P, "Q": Q}.items()}
        p["E"] = Param(torch.zeros(self.rank))
        state = {"mask": Param(torch.ones(self.rank), trained=False)}
        for name, one in p.items():
            for kind in ("mean", "spread"):
                state[f"{name}_{kind}"] = Param(torch.zeros_like(one.value), trained=False)
        return p | state

    def _scaled(self, p: Values) -> Tensor:  # the gradient is λ's own: what is masked may come back
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
        if self.tinit >= last:
            ends = f"tinit={self.tinit} and tfinal={self.tfinal}"
            raise InputError(f"adalora: {ends} leave none of {total} steps")
        if step < last:
            self._observe(sites)
        allot = step == last or (self.tinit < step < last and step % self.interval == 0)
        if allot:
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
        end = self.target * (every.numel() // self.rank)
        gone = every.numel() - int((every.numel() - end) * above + end)
        least = every.kthvalue(gone).values if gone else every.min() - 1
        for score, p in zip(scores, sites.values(), strict=True):
            p.mask.copy_(score > least)


def _score(p: Values) -> Tensor:
    """Of each triplet: its value's importance and its vectors' mean one."""
    P, Q, E = (p.tensors[f"{n}_mean"] * p.tensors[f"{n}_spread"] for n in "PQE")
    return E + P.mean(-2) + Q.mean(-1)
