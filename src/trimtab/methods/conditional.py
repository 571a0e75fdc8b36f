"""One adapter for many tasks, conditioned on the task: CA-MTL, Pilault, Elhattami and Pal 2021,
arXiv:2009.09139; HyperFormer, Mahabadi et al. 2021, arXiv:2106.04489.

    h' = h + U ((1 + G z) ∘ LN(σ(D h + d)) + B z) + u,   z the embedding of the example's task

All tasks share the bottlenecks; its conditional LayerNorm has gain and shift made from z, which all
sites share. U, G and B start at zero: every task starts at the base.

Use it where one adapter is to serve several related tasks, and each example says which task it is
of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.bottleneck import Bottleneck
from trimtab.core.call import Call, repeated
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Conditional(Bottleneck):
    """A bottleneck for several tasks, each known by an embedding."""

    name = "conditional"
    by_example = True
    paper = "arXiv:2009.09139"
    needs = frozenset({"task_ids"})

    activation: str = "gelu"
    tasks: int = option(2, "how many tasks there are: `task_ids` run from 0 to one less")
    embedding: int = option(32, "length of z, a task's embedding")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks < 1 or self.embedding < 1:
            raise InputError(f"{self.name}: tasks and embedding must be at least 1")

    def accepts(self, site: Site) -> str | None:
        narrow = "a LayerNorm over a bottleneck of width one leaves nothing of it"
        return super().accepts(site) or (narrow if self.m(site) < 2 else None)

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        return {"z": Param(torch.randn(self.tasks, self.embedding))}

    def init(self, site: Site) -> dict[str, Param]:
        film = (Param(torch.zeros(self.m(site), self.embedding)) for _ in range(2))
        return {**super().init(site), **dict(zip(("G", "B"), film, strict=True))}

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        ids = repeated(call.tasks(self.tasks), y.shape[0], "task_ids").to(y.device)
        hidden, U = self.inside(p, y)
        z = F.embedding(ids, p.z).reshape(-1, *[1] * (y.ndim - 2), self.embedding)
        gain, shift = linear(z, p.G), linear(z, p.B)
        out = linear((1 + gain) * F.layer_norm(hidden, hidden.shape[-1:]) + shift, U, p.u)
        return y + self.scale * out
