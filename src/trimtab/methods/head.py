"""Head only: the task head trains on the frozen base's features (a linear probe where it is
linear).

The baseline that tells what the base's features are worth without adapting them.

Use it as the lower bound, and where the base's features already tell the classes apart: they are
computed once, so that training takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trimtab.core.heads import heads
from trimtab.core.method import Selection


@dataclass(frozen=True, kw_only=True)
class Head(Selection):
    """Trains the parameters of the model's head, in place."""

    name = "head"
    targets = ()
    learning_rate = 1e-2

    def chosen(self, model: nn.Module) -> Sequence[str]:
        inside = tuple(f"{name}." for name in heads(model))
        return [name for name, _ in model.named_parameters() if name.startswith(inside)]
