"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning. Lester, Al-Rfou and
Constant 2021, arXiv:2104.08691.

    X' = [P; X],   P (n, d)

n trained embeddings stand before those of the input. P starts at embeddings of the vocabulary,
which lie where the model expects its input: drawn at random, or those of given tokens.

Use it with large models, where a few vectors before the input reach the quality of tuning the
weights; with small ones it falls behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.errors import InputError
from trimtab.core.method import Fields, Names, Param, Prompt, Values, option
from trimtab.core.site import Site
from trimtab.core.vocabulary import check_start, rows


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Prompt):
    """Trained embeddings before the input."""

    name = "prompt"
    paper = "arXiv:2104.08691"
    learning_rate = 3e-2
    hf: ClassVar[Names | None] = Names(
        peft_type="PROMPT_TUNING",
        tensors={"P": "prompt_embeddings"},
        fields={"length": "num_virtual_tokens"},
        patterns=(),
        more=Fields(
            (
                *("prompt_tuning_init", "prompt_tuning_init_text"),
                *("tokenizer_name_or_path", "tokenizer_kwargs"),
            ),
            read=lambda config: {},
            write=lambda method: {"prompt_tuning_init": "RANDOM"},
        ),
    )

    length: int = option(20, "n, embeddings before the input")
    start: str | tuple[int, ...] = option(
        "vocabulary",
        '"vocabulary" (rows at random), "random" (uniform in ±0.5) or ids of tokens, repeated',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise InputError(f"prompt: length must be at least 1, not {self.length}")
        check_start(self.name, self.start)

    def init(self, site: Site) -> dict[str, Param]:
        return {"P": Param(rows(self.name, site, self.length, self.start))}

    def extend(self, p: Values, call: Call) -> Tensor:
        return p.P
