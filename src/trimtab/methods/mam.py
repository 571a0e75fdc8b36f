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

from trimtab.core.method import Composite, Method
from trimtab.core.registry import build


@dataclass(frozen=True, kw_only=True)
class MAM(Composite):
    """A prefix of `length`, made by a network of width `projection` if that is not 0, and parallel
    adapters of `width`, times `scale`. The paper's sizes are those of its summarisation."""

    name = "mam"
    paper = "arXiv:2110.04366"
    learning_rate = 1e-4
    starts_at_base: ClassVar[str | None] = "every position attends to the prefix"

    length: int = 30
    projection: int = 0
    width: int = 512
    activation: str = "relu"
    scale: float = 4.0
    dropout: float = 0.0

    def parts(self) -> tuple[Method, ...]:
        prefix = {"length": self.length, "projection": self.projection}
        adapter = {field: getattr(self, field) for field in _ADAPTER}
        return build("prefix", prefix), build("parallel", adapter)


_ADAPTER = ("width", "activation", "scale", "dropout")
