"""A hyper-parameter by another library's name: the message says what it is called here."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.method import Additive
from trimtab.core.registry import build

SAID: dict[str, tuple[Callable[[], Any], str]] = {
    "rank": (lambda: trimtab.LoRA(r=8), r"'r'; here it is 'rank': LoRA\(rank=8\)"),
    "alpha": (lambda: trimtab.LoRA(lora_alpha=16), r"LoRA\(alpha=16\)"),
    "rslora": (lambda: trimtab.DoRA(use_rslora=True), r"DoRA\(rslora=True\)"),
    "without files of its own": (lambda: trimtab.GatedLoRA(r=4), r"GatedLoRA\(rank=4\)"),
    "virtual tokens": (lambda: trimtab.PromptTuning(num_virtual_tokens=3), r"\(length=3\)"),
    "bottleneck": (lambda: trimtab.Houlsby(bottleneck_size=9), r"Houlsby\(width=9\)"),
    "reduction": (lambda: trimtab.Pfeiffer(reduction_factor=16), r"\(reduction=16\)"),
    "nonlinearity": (lambda: trimtab.Pfeiffer(non_linearity="relu"), r"\(activation='relu'\)"),
    "where": (
        lambda: trimtab.LoRA(target_modules=["q"]),
        r"attach\(model, method, to=…\).*--target",
    ),
    "whole": (lambda: trimtab.LoRA(modules_to_save=["head"]), r"train=….*--train"),
    "of another": (lambda: trimtab.LoRA(use_dora=True), r"trimtab\.DoRA"),
    "misspelt": (lambda: trimtab.LoRA(rnak=8), r"'rnak'; nearest: 'rank'"),
    "none there": (lambda: trimtab.BitFit(r=8), r"bitfit has no hyper-parameter 'r'; it has none"),
    "no such idea": (lambda: trimtab.Houlsby(r=8), r"'r'; known: .*'width', 'reduction'"),
    "without a name": (
        lambda: trimtab.LoRA(8),
        r"LoRA takes its hyper-parameters by name \(.*rank",
    ),
    "from plain data": (lambda: build("lora", {"r": 8}), r"here it is 'rank': LoRA\(rank=8\)"),
}


@pytest.mark.parametrize(("make", "said"), SAID.values(), ids=list(SAID))
def test_the_message_says_what_to_write(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_a_method_is_copied_pickled_and_described_as_before() -> None:
    method = trimtab.LoRA(rank=3)
    assert copy.deepcopy(method) == pickle.loads(pickle.dumps(method)) == method
    assert list(inspect.signature(trimtab.IA3).parameters) == ["scales"]


def test_an_abstract_method_is_still_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Additive()
