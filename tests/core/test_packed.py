"""Several examples in one row, told apart by positions that start anew: each is computed as it is
alone, or the method refuses."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from cases import FREE, Architecture, attach, by_name, pairs, perturb, tokens
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Prompt

LENGTHS = (5, 9, 3)
DECODERS = [by_name(name) for name in ("llama", "gpt2", "qwen3")]


def texts() -> list[Tensor]:
    return list(tokens(sum(LENGTHS)).split(LENGTHS))


def packed(examples: list[Tensor]) -> dict[str, Any]:
    """As transformers' own collator packs them. With a cache, which it makes unless told not to,
    transformers does not look at where positions start."""
    rows = [{"input_ids": one.tolist()} for one in examples]
    batch = DataCollatorWithFlattening(return_tensors="pt")(rows)
    assert batch["input_ids"].shape == (1, sum(LENGTHS))
    return {**batch, "use_cache": False}


def alone(model: nn.Module, examples: list[Tensor]) -> Tensor:
    return torch.cat([model(input_ids=one[None]).logits[0] for one in examples])


@pytest.mark.parametrize("block", [False, True], ids=["sdpa", "blockwise"])
@pairs(FREE, DECODERS)
def test_alone_or_refused(method: Method, architecture: Architecture, block: bool) -> None:
    model = architecture.model()
    attach(model, method)
    perturb(model)
    if block:
        trimtab.kernels.blockwise(model)
    batch = packed(texts())
    with torch.no_grad():
        expected = alone(model, texts())
        try:
            found = model(**batch).logits[0]
        except InputError as error:
            refused = str(error)
        else:
            refused = ""
    if refused:
        assert "packed into one row" in refused
        return
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert not isinstance(method, Prompt)


@pytest.mark.parametrize("method", [trimtab.LoRA(), trimtab.PrefixTuning(length=3)])
def test_gradients_are_those_of_the_examples(method: Method) -> None:
    """The loss is a mean over all tokens that have a label, the first of each example left out."""
    model = by_name("llama").model()
    attach(model, method)
    perturb(model)
    trimtab.kernels.blockwise(model)
    trained, examples = trimtab.parameters(model), texts()
    found = torch.autograd.grad(model(**packed(examples)).loss, trained)
    losses = [model(input_ids=one[None], labels=one[None]).loss for one in examples]
    counted = [(length - 1) * one for length, one in zip(LENGTHS, losses, strict=True)]
    expected = torch.autograd.grad(
        sum(counted, torch.zeros(())) / (sum(LENGTHS) - len(LENGTHS)), trained
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_one_example_in_a_row_is_not_packed() -> None:
    """Positions given, but of one example: what reads it as a whole may."""
    model = by_name("llama").model()
    attach(model, trimtab.PromptTuning(length=3))
    ids = texts()[1][None]
    counted = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        found = model(input_ids=ids, position_ids=counted).logits
        torch.testing.assert_close(found, model(input_ids=ids).logits)


def test_positions_that_padding_shifts_are_not_packed() -> None:
    """Left padding counts again after it; its mask says so."""
    model = by_name("llama").model()
    attach(model, trimtab.PromptTuning(length=3))
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=counted)


def test_most_methods_can_be_packed() -> None:
    """So that refusing is no way out: maps of a token know nothing of its row."""
    refused = []
    for method in FREE:
        model = by_name("llama").model()
        with contextlib.suppress(trimtab.SiteNotFound):
            trimtab.attach(model, method)
            try:
                model(**packed(texts()))
            except InputError:
                refused.append(method.name)
    assert len(refused) < len(FREE) / 3, refused


def test_blocks_look_at_their_own_examples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys before the first and behind the last that a block sees cost nothing."""
    from trimtab.kernels import attention

    monkeypatch.setattr(attention, "_BLOCK", 4)
    number = torch.arange(6).repeat_interleave(4)
    mask = ((number[:, None] == number) & torch.ones(24, 24).tril().bool())[None, None]
    q = torch.randn(1, 2, 24, 8)
    seen = [keys for _, keys, _ in attention._blocks(q, q, mask, False)]
    assert seen == [slice(a, b) for a, b in itertools.pairwise(range(0, 25, 4))]
