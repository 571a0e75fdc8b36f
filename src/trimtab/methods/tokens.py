"""Chosen rows of the embedding: what added tokens need.

    W'[:, i] = t_i for the rows i,   t (rows, d)

t starts at the base's own rows, and stands in their place: a vocabulary that was resized anew, with
other random rows, gives the same model.

Use it for added tokens, beside another method: only their rows train and are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Names, Param, Transform, Values, option
from trimtab.core.operator import Operator
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Tokens(Transform):
    """Trains rows of the embedding, by the tokens' ids."""

    name = "tokens"
    targets = ("embedding",)
    kinds = frozenset({"embedding", "linear"})
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = Names(
        peft_type="TRAINABLE_TOKENS",
        tensors={},
        fields={"rows": "token_indices"},
        at={"embedding": {"t": "trainable_tokens_delta"}},
        patterns=(),
    )
    replaces = frozenset({"weight"})

    rows: tuple[int, ...] | None = option(None, "ids of the tokens whose rows train; None: all")
    tied: bool = option(
        False, "the same rows wherever it is attached, as in an output layer tied to the embedding"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows is None:
            return
        object.__setattr__(self, "rows", tuple(self.rows))
        whole = all(isinstance(row, int) and row >= 0 for row in self.rows)
        distinct = len(set(self.rows)) == len(self.rows) > 0
        self.require("rows", whole and distinct, "be distinct ids of tokens, at least one")

    def accepts(self, site: Site) -> str | None:
        if site.geometry.kind == "linear" and not self.tied:
            return "an output layer has rows of tokens only where it is tied to the embedding"
        return super().accepts(site)

    def shared(self, sites: Sequence[Site]) -> dict[str, Param]:
        return self._start(sites[0]) if self.tied else {}

    def init(self, site: Site) -> dict[str, Param]:
        return {} if self.tied else self._start(site)

    def _start(self, site: Site) -> dict[str, Param]:
        embeds = site.geometry.kind == "embedding"
        table = site.matrix.mT if embeds else site.matrix
        beyond = [row for row in self.rows or () if row >= len(table)]
        if beyond:
            raise InputError(
                f"tokens: rows has {beyond[0]}, and {site.name!r} has {len(table)} rows: "
                "resize the embedding first, then attach"
            )
        return {"t": Param(table.clone() if self.rows is None else table[list(self.rows)])}

    def _rows(self, p: Values) -> Tensor:
        chosen = range(len(p.t)) if self.rows is None else self.rows
        return torch.tensor(chosen, device=p.t.device)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if p.site.geometry.kind == "linear":
            return W.index_copy(0, self._rows(p), p.t.to(W.dtype)), b
        return W.index_copy(1, self._rows(p), p.t.mT.to(W.dtype)), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if p.site.geometry.kind == "linear":
            return super().forward(p, x, inner, call)
        gain = inner.geometry.gain
        if self.rows is None:
            return gain * F.embedding(x, p.t)
        y, (rows, order) = inner(x), self._rows(p).sort()
        place = torch.searchsorted(rows, x).clamp(max=len(rows) - 1)
        own = gain * F.embedding(order[place], p.t)
        return torch.where((rows[place] == x)[..., None], own.to(y.dtype), y)
