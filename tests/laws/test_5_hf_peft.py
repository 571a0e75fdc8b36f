"""Law 5: HF PEFT's files, both ways."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import suite
from broken import Forgetful

import trimtab
from trimtab.core.method import Method, Names


@suite.held(5)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


class OtherName(trimtab.LoRA):
    """It calls a tensor what HF PEFT does not."""

    assert trimtab.LoRA.hf is not None
    hf: ClassVar[Names | None] = dataclasses.replace(
        trimtab.LoRA.hf, tensors={"A": "lora_A.weight", "B": "lora_C.weight"}
    )


def test_controls() -> None:
    suite.breaks(Forgetful(), "hf-peft", "our file, run by HF PEFT")
    suite.breaks(OtherName(), "hf-peft")
