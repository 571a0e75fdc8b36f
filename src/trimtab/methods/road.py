"""RoAd: 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
Composability. Liao and Monz 2024, arXiv:2409.00119.

    (W', b') = (R W, R b),   R = 2 x 2 blocks   | α_1 cos θ_1   -α_2 sin θ_2 |
                                                | α_3 sin θ_3    α_4 cos θ_4 |

The output is turned by pairs of features, each by an angle θ and stretched by α: one of both for a
pair (RoAd_1), one for each row (RoAd_2), or one for each entry (RoAd_4). An elementwise product, so
that requests with different adapters run in one batch. θ starts at zero and α at one, so that the
adapted model starts at the base.

Use it where many adapters serve one batch: its change of an output is elementwise, the cheapest
there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Fields, Names, Param, Transform, Values, option
from trimtab.core.operator import Operator
from trimtab.core.site import Site


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    kind, group = config.get("variant", "road_1"), config.get("group_size", 64)
    return {"angles": int(kind.removeprefix("road_")), "group": group}


def _write(method: Any) -> dict[str, Any]:
    return {"variant": f"road_{method.angles}", "group_size": method.group}


@dataclass(frozen=True, kw_only=True)
class Road(Transform):
    """Pairs of outputs turned and stretched."""

    name = "road"
    paper = "arXiv:2409.00119"
    learning_rate = 9e-3
    kinds = frozenset({"linear", "embedding", "conv"})
    hf: ClassVar[Names | None] = Names(
        peft_type="ROAD",
        tensors={"theta": "road_theta", "alpha": "road_alpha"},
        fields={},
        patterns=(),
        more=Fields(("variant", "group_size"), _read, _write),
    )

    angles: int = option(
        1, "angles and stretches a pair of outputs: 1 (RoAd_1), 2 (RoAd_2) or 4 (RoAd_4)"
    )
    group: int = option(
        2, "outputs of which the first half is paired with the second; even, divides the width"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("angles", self.angles in (1, 2, 4), "be 1, 2 or 4")
        self.require("group", self.group >= 2 and self.group % 2 == 0, "be even, at least 2")

    def accepts(self, site: Site) -> str | None:
        n = site.out_features // max(
            1, site.geometry.groups
        )  # none is paired across a conv's groups
        odd = f"its {n} outputs do not fall into groups of {self.group}"
        return super().accepts(site) or (odd if n % self.group else None)

    def init(self, site: Site) -> dict[str, Param]:
        size = site.out_features * self.angles // 2
        return {
            "theta": Param(torch.zeros(size), exact=True),
            "alpha": Param(torch.ones(size), exact=True),
        }

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._turned(p, W.mT).to(W.dtype).mT, None if b is None else self._turned(p, b)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        y = inner(x)
        return self._turned(p, y).to(y.dtype)

    def _turned(self, p: Values, y: Tensor) -> Tensor:
        """y by groups, (…, groups, first or second half, pairs), each half with both."""
        parts = y.unflatten(-1, (-1, 2, self.group // 2))
        crossed = torch.stack([-parts[..., 1, :], parts[..., 0, :]], dim=-2)
        if self.angles == 4:  # those of a group's cosines, then those of its sines
            theta, alpha = (t.view(-1, 2, 2, self.group // 2) for t in (p.theta, p.alpha))
            along, across = (alpha * theta.cos())[:, 0], (alpha * theta.sin())[:, 1]
        else:  # one for both halves, or one for each
            theta, alpha = (t.view(-1, self.angles, self.group // 2) for t in (p.theta, p.alpha))
            along, across = alpha * theta.cos(), alpha * theta.sin()
        return (parts * along + crossed * across).flatten(-3)
