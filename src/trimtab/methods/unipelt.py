"""UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning. Mao et al. 2022,
arXiv:2110.07577.

    at every layer: LoRA at queries and values, a prefix, an adapter after feed-forward, each times
    its gate G = mean over positions of sigmoid(w · x + w₀)

Which submodule serves best depends on the task and its data; the gates learn it from the input. The
laws are those of `gated-lora`, `gated-prefix` and `gated-adapter`.

Use it where it is not known which of the three suits the data, above all with few examples: the
gates choose, at the price of latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.method import Composite, Method, option
from trimtab.core.registry import build


@dataclass(frozen=True, kw_only=True)
class UniPELT(Composite):
    """A gated LoRA, a gated prefix and a gated adapter."""

    name = "unipelt"
    paper = "arXiv:2110.07577"
    learning_rate = 4.5e-3
    starts_at_base: ClassVar[str | None] = "every position attends to the prefix"

    rank: int = option(8, "r of the gated LoRA")
    alpha: float = option(16.0, "numerator of the LoRA's scale alpha / r")
    length: int = option(10, "n, the gated prefix's keys and values at each attention")
    width: int = option(48, "m, the features inside the gated adapter")

    def parts(self) -> tuple[Method, ...]:
        return (
            build("gated-lora", {"rank": self.rank, "alpha": self.alpha}),
            build("gated-prefix", {"length": self.length}),
            build("gated-adapter", {"width": self.width}),
        )
