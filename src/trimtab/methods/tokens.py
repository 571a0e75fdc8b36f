"""Chosen rows of the embedding: what added tokens need.

    W'[:, i] = t_i for the rows i,   t (rows, d)

t starts at the base's own rows, and stands in their place: a vocabulary that was resized anew, with
other random rows, gives the same model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Transform, Values
from trimtab.core.operator import Operator
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Tokens(Transform):
    """Trains these `rows` of the embedding, by the tokens' ids; None: every row."""

    name = "tokens"
    targets = ("embedding",)
    kinds = frozenset({"embedding"})
    learning_rate = 1e-3
    replaces = frozenset({"weight"})

    rows: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows is None:
            return
        object.__setattr__(self, "rows", tuple(self.rows))
        whole = all(isinstance(row, int) and row >= 0 for row in self.rows)
        distinct = len(set(self.rows)) == len(self.rows) > 0
        self.require("rows", whole and distinct, "be distinct ids of tokens, at least one")

    def init(self, site: Site) -> dict[str, Param]:
        beyond = [row for row in self.rows or () if row >= site.in_features]
        if beyond:
            raise InputError(
                f"tokens: rows has {beyond[0]}, and {site.name!r} has {site.in_features} rows: "
                "resize the embedding first, then attach"
            )
        table = site.matrix.mT
        return {"t": Param(table.clone() if self.rows is None else table[list(self.rows)])}

    def _rows(self, p: Values) -> Tensor:
        chosen = range(len(p.t)) if self.rows is None else self.rows
        return torch.tensor(chosen, device=p.t.device)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return W.index_copy(1, self._rows(p), p.t.mT.to(W.dtype)), b

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        gain = inner.geometry.gain
        if self.rows is None:
            return gain * F.embedding(x, p.t)
        y, (rows, order) = inner(x), self._rows(p).sort()
        place = torch.searchsorted(rows, x).clamp(max=len(rows) - 1)
        own = gain * F.embedding(order[place], p.t)
        return torch.where((rows[place] == x)[..., None], own.to(y.dtype), y)
