"""QLoRA: Efficient Finetuning of Quantized LLMs. Dettmers et al. 2023, arXiv:2305.14314.

    W' = c(codes) + (alpha / r) B A,   A (r, in), B (out, r)

LoRA at every linear map of a base whose weights are codes of 4 bits, NormalFloat, with their scales
quantised once more: c reads the codes, one map at a time. B starts at zero, so that the adapted
model starts at the quantised base.

Use it where the base in 16 bits does not fit in memory; where it does, `lora` is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core import quantised
from trimtab.core.lowrank import Update
from trimtab.core.method import Method, Names
from trimtab.core.registry import build
from trimtab.core.site import Site
from trimtab.methods._peft_lora import LORA_NAMES


@dataclass(frozen=True, kw_only=True)
class QLoRA(Update):
    """A low-rank update over a base in NF4: `trimtab.quantise(model, "nf4")` before attaching, or
    a model that was loaded so. Its files are LoRA's, and load as `lora`, with a warning, on a base
    that is not in NF4."""

    name = "qlora"
    paper = "arXiv:2305.14314"
    kinds = frozenset({"linear"})
    learning_rate = 1e-3
    base = "nf4"
    hf: ClassVar[Names | None] = LORA_NAMES

    def elsewhere(self) -> Method:
        return build("lora", self.arguments())

    def accepts(self, site: Site) -> str | None:
        reason = super().accepts(site)
        if reason is None and quantised.form(site.module) != "nf4":
            reason = "it acts on maps in NF4: quantise the model first, quantise(model, 'nf4')"
        return reason
