"""LoRA: Low-Rank Adaptation of Large Language Models. Hu et al. 2021, arXiv:2106.09685.

    W' = W + (alpha / r) B A,   A (r, in), B (out, r)

B starts at zero, so that the adapted model starts at the base. With `rslora` the scale is
alpha / √r, which keeps the update's size as the rank grows (Kalajdzievski 2023, arXiv:2312.03732).
Other ranks at some sites are a plan: `{"query": LoRA(rank=16), "all-linear": LoRA(rank=8)}`.

Use it first: near full fine-tuning on most tasks, merged without cost, routed by example, with the
fastest kernels here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.lowrank import Update
from trimtab.core.method import Names
from trimtab.methods._peft_lora import LORA_NAMES


@dataclass(frozen=True, kw_only=True)
class LoRA(Update):
    """A low-rank update of the matrix."""

    name = "lora"
    paper = "arXiv:2106.09685"
    learning_rate = 1e-3
    hf: ClassVar[Names | None] = LORA_NAMES
