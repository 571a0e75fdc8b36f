"""Mix-and-match adapters: Towards a Unified View of Parameter-Efficient Transfer Learning. He et
al. 2022, arXiv:2110.04366.

    attention(q, [K; k], [V; v])  at every self-attention,
    y' = f(x) + s (U σ(D x + d) + u)  beside every feed-forward sublayer

A short prefix is the best use of few parameters at attention, and a scaled parallel adapter that of
many at feed-forward: the paper's best of both. The laws are those of `prefix` and `parallel`.

Use it where the quality of full fine-tuning is wanted from a frozen base, and latency may grow: He
et al. found this mixture best of those that they tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.method import Composite, Method, option
from trimtab.core.registry import build


@dataclass(frozen=True, kw_only=True)
class MAM(Composite):
    """A prefix and parallel adapters. The sizes are those of the paper's summarisation."""

    name = "mam"
    paper = "arXiv:2110.04366"
    learning_rate = 1e-4
    starts_at_base: ClassVar[str | None] = "every position attends to the prefix"

    length: int = option(30, "n, the prefix's keys and values at each attention")
    projection: int = option(
        0, "width of the network that makes the prefix; 0: it is trained itself"
    )
    width: int = option(512, "m, the features inside each parallel adapter")
    activation: str = option("relu", "σ of the adapters, one of those of `parallel`")
    scale: float = option(4.0, "s, by which what the adapters add is multiplied")
    dropout: float = option(0.0, "share of σ's outputs left out in training, in [0, 1)")

    def parts(self) -> tuple[Method, ...]:
        prefix = {"length": self.length, "projection": self.projection}
        adapter = {field: getattr(self, field) for field in _ADAPTER}
        return build("prefix", prefix), build("parallel", adapter)


_ADAPTER = ("width", "activation", "scale", "dropout")
