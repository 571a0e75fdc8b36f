"""Full fine-tuning: every parameter of the base trains. The baseline that every method answers
to.

Use it where memory for the optimizer and a whole copy for each task are no matter; everywhere else
as the measure of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trimtab.core.method import Selection


@dataclass(frozen=True, kw_only=True)
class Full(Selection):
    """Trains all parameters, in place."""

    name = "full"
    targets = ()
    learning_rate = 5e-5
    base_dropout = True  # nothing is frozen: the base trains as it was trained

    def chosen(self, model: nn.Module) -> Sequence[str]:
        return [name for name, _ in model.named_parameters()]
