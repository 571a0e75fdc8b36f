"""Layer-wise fine-tuning: the last blocks of the base and its head train, what lies below is
frozen.

The baseline that most practitioners know: no backward pass through the frozen blocks.

Use it where the task is close to what the base was trained for: the lower blocks are not on the way
back, which saves time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.core.layout import runs
from trimtab.core.method import Selection, option


@dataclass(frozen=True, kw_only=True)
class Layers(Selection):
    """Trains the last blocks and the head, in place; of an encoder with a decoder, the decoder's;
    of several towers, each one's."""

    name = "layers"
    learning_rate = 1.5e-4

    top: int = option(2, "how many of the last blocks train")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("top", self.top >= 1, "be at least 1")

    def chosen(self, model: nn.Module) -> Sequence[str]:
        found = runs(model)
        if not found:
            raise InputError(f"layers: no blocks were recognised in {type(model).__name__}")
        upper = [run for run in found if run.decoder] or found
        for run in upper:
            if self.top > len(run.blocks):
                raise InputError(
                    f"layers: top={self.top}, and {run.name or type(model).__name__} has "
                    f"{len(run.blocks)} blocks"
                )
        inside = tuple(f"{n}." for run in upper for n in run.blocks[-self.top :])
        inside += tuple(f"{name}." for name in heads(model))
        return [name for name, _ in model.named_parameters() if name.startswith(inside)]
