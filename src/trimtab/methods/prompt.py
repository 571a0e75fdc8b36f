"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning. Lester, Al-Rfou and
Constant 2021, arXiv:2104.08691.

    X' = [P; X],   P (n, d)

n trained embeddings stand before those of the input. P starts at embeddings of the vocabulary,
drawn at random or of given words, or at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Param, Prompt, Values
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Prompt):
    """`length` trained embeddings before the input. `init` is "vocabulary", "random", or the ids
    of the tokens to start at."""

    name = "prompt"
    paper = "arXiv:2104.08691"
    learning_rate = 3e-2

    length: int = 20
    start: str | tuple[int, ...] = "vocabulary"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"prompt: length must be at least 1, not {self.length}")

    def init(self, site: Site) -> dict[str, Param]:
        table = site.module.get_input_embeddings().weight.detach().float()  # type: ignore[operator]
        if self.start == "random":
            return {"P": Param(torch.rand(self.length, table.shape[1]) - 0.5)}
        chosen = torch.randint(len(table), (self.length,), device="cpu")
        return {"P": Param(table.cpu()[chosen].clone())}

    def extend(self, p: Values, call: Call) -> Tensor:
        return p.P
