"""LoReFT: Representation Finetuning for Language Models. Wu et al. 2024, arXiv:2404.03592.

    h' = h + Rᵀ (W h + b - R h),   R (r, d) with orthonormal rows

An edit of the residual stream, at the first `first` and the last `last` real tokens of the prompt.
R is the orthonormal factor of a trained matrix, so that its rows stay orthonormal. W starts at R
and b at zero: the adapted model starts at the base. The first positions and the last may have one
edit in common, or one each.

Use it where the number of trained parameters must be far below LoRA's and the task can be steered
at a few positions of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Intervention, Param, Values, option
from trimtab.core.operator import linear
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class ReFT(Intervention):
    """An edit within a subspace, at the first and the last positions of the prompt. Not `tied`, a
    position that is of both belongs to the nearer end.

    The prompt is what a model reads before it generates: with a cache the first pass, in training
    what stands before the first label (those of -100 left out), otherwise all. `generate` without a
    cache, whose every pass reads what was generated too, is refused.
    """

    name = "reft"
    by_example = True
    paper = "arXiv:2404.03592"
    targets = ("block",)
    kinds = frozenset({"block", "linear"})
    learning_rate = 1.2e-3

    rank: int = option(4, "r, dimensions of the subspace that is edited")
    first: int = option(7, "positions edited at the start of the prompt, in tokens")
    last: int = option(7, "positions edited at its end, in tokens")
    tied: bool = option(True, "one edit for both ends; False: one for each")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"reft: rank must be at least 1, not {self.rank}")
        if min(self.first, self.last) < 0 or self.first + self.last < 1:
            raise InputError(
                f"reft: first={self.first} and last={self.last} choose no position to edit"
            )

        both = bool(self.first and self.last)
        self.require_use("tied", both, "where both first and last choose positions")

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is None and site.out_features < self.rank:
            reason = f"{self.rank} orthonormal rows do not fit its width of {site.out_features}"
        return reason

    def init(self, site: Site) -> dict[str, Param]:
        params: dict[str, Param] = {}
        for end in self._ends():
            A = nn.init.orthogonal_(torch.empty(self.rank, site.out_features))
            params |= {
                f"A{end}": Param(A, exact=True),
                f"W{end}": Param(orthonormal(A), exact=True),
            }
            params[f"b{end}"] = Param(torch.zeros(self.rank))
        return params

    def _ends(self) -> tuple[str, ...]:
        """What the tensors' names end in, one edit each."""
        return ("",) if self.tied or not (self.first and self.last) else ("_first", "_last")

    def edit(self, p: Values, x: Tensor, y: Tensor, call: Call) -> Tensor:
        if y.ndim < 3:
            raise InputError(f"reft edits positions, and {p.site.name!r} gives {tuple(y.shape)}")
        chosen = self.chosen(p, y, call)
        if chosen is None:
            return y
        for end, positions in zip(self._ends(), chosen, strict=True):
            A, W, b = (p.tensors[f"{name}{end}"] for name in "AWb")
            R = orthonormal(A)
            change = linear(linear(y, (W - R).to(y.dtype), b), R.mT.to(y.dtype))
            y = y + change * positions[..., None].to(y.dtype)
        return y

    def chosen(self, p: Values, y: Tensor, call: Call) -> list[Tensor] | None:
        """Which positions (batch, positions) each edit is for; None where the prompt is over."""
        prompt = call.prompt(p.site.stack, y)
        if prompt is None:
            return None
        before = prompt.cumsum(1)  # real tokens up to here, this one included
        after = before[:, -1:] - before + 1
        first, last = before <= self.first, after <= self.last
        if len(self._ends()) == 1:
            return [prompt * (first | last)]
        nearer = before <= after
        return [prompt * (first & (nearer | ~last)), prompt * (last & ~(first & nearer))]


def orthonormal(A: Tensor) -> Tensor:
    """The orthonormal rows that span those of A, the same for the same A whatever its scale."""
    Q, upper = torch.linalg.qr(A.mT)
    return (Q * upper.diagonal().sign()).mT
