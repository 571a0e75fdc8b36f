"""AdaLoRA: Adaptive Budget Allocation. Zhang et al. 2023, arXiv:2303.10512.

    W' = W + (alpha / r) P diag(λ ∘ mask) Q,   P (out, r), Q (r, in), λ (r,)

A singular value and its two vectors are a triplet. While training, the triplets that matter least
to the loss, over all sites together, are masked, until `target` of them a site are left on
average: some sites keep more, some none. λ starts at zero; P and Q start at small random values,
and a penalty draws them to be orthogonal.
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

    The budget falls, as a cubic, after the first `tinit` steps and until `tfinal` are left; it is
    allotted every `interval` steps. `beta1` and `beta2` smooth the importance and its variation;
    `orthogonality` weighs the penalty. It takes a loop that calls `after_backward` at each step.
    """

    name = "adalora"
    paper = "arXiv:2303.10512"
    learning_rate = 1e-3
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
        shapes = {"P": (site.out_features, self.rank), "Q": (self.rank, site.in_features)}
        p = {name: Param(nn.init.normal_(torch.empty(s), std=0.02)) for name, s in shapes.items()}
        p["E"] = Param(torch.zeros(self.rank))
        state = {"mask": torch.ones(self.rank)}
        for name, one in p.items():
            for kind in ("mean", "spread"):
                state[f"{name}_{kind}"] = torch.zeros_like(one.value)
        return p | {name: Param(value, trained=False) for name, value in state.items()}

    def _scaled(self, p: Values) -> Tensor:
        """λ ∘ mask; the gradient is λ's own, so that what is masked may come back."""
        masked = p.E * p.mask + (p.E - p.E.detach()) * (1 - p.mask)
        return (self.alpha / self.rank) * masked

    def delta(self, p: Values) -> Tensor:
        return p.P @ (self._scaled(p)[:, None] * p.Q)

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return linear(linear(x, p.Q) * self._scaled(p), p.P)

    def penalty(self, p: Values) -> Tensor | None:
        if not self.orthogonality:
            return None
        grams = torch.stack([p.P.mT @ p.P, p.Q @ p.Q.mT])
        off = torch.linalg.matrix_norm(grams - torch.eye(self.rank, device=grams.device))
        return self.orthogonality * off.mean() / p.total

    def budget(self, step: int, total: int, sites: int) -> int:
        """How many triplets are left after this step."""
        start, end = self.rank * sites, self.target * sites
        if step <= self.tinit:
            return start
        left = max(0.0, 1 - (step - self.tinit) / (total - self.tfinal - self.tinit))
        return int((start - end) * left**3 + end)

    def after_backward(self, sites: Mapping[str, Values], step: int, total: int) -> None:
        last = total - self.tfinal
        if self.tinit >= last:
            raise InputError(
                f"adalora: tinit={self.tinit} and tfinal={self.tfinal} leave none of {total} steps"
            )
        if step < last:
            self._observe(sites)
        allot = step == last or (self.tinit < step < last and step % self.interval == 0)
        if allot:
            self._allot(sites, self.budget(step, total, _count(sites)))
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
                now = (
                    torch.zeros_like(mean) if tensor.grad is None else (tensor * tensor.grad).abs()
                )
                mean.lerp_(now, 1 - self.beta1)
                p.tensors[f"{name}_spread"].lerp_((now - mean).abs(), 1 - self.beta2)

    def _allot(self, sites: Mapping[str, Values], budget: int) -> None:
        """Mask all but the `budget` triplets that matter most."""
        scores = {name: _score(p) for name, p in sites.items()}
        every = torch.cat([score.flatten() for score in scores.values()])
        gone = every.numel() - budget
        least = every.kthvalue(gone).values if gone else every.min() - 1
        for name, p in sites.items():
            p.mask.copy_(scores[name] > least)


def _count(sites: Mapping[str, Values]) -> int:
    """The number of matrices: an expert is one."""
    return sum(p.E[..., 0].numel() for p in sites.values())


def _score(p: Values) -> Tensor:
    """Of each triplet: its value's importance and its vectors' mean one."""
    P, Q, E = (p.tensors[f"{n}_mean"] * p.tensors[f"{n}_spread"] for n in "PQE")
    return E + P.mean(-2) + Q.mean(-1)
