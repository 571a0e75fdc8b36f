"""Several examples in one row, told apart by positions that start anew: each is computed as it is
alone, or the method refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import FREE, Architecture, attach, by_name, pairs, perturb, tokens
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, MistralConfig, MistralForCausalLM

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Prompt
from trimtab.testing import architectures

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


def _refusal(model: nn.Module) -> str:
    try:
        model(**packed(texts()))
    except InputError as error:
        return str(error)
    return ""


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
    with torch.no_grad():
        expected = alone(model, texts())
        if refused := _refusal(model):
            assert "packed into one row" in refused
            return
        found = model(**packed(texts())).logits[0]
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
        found = model(input_ids=ids, attention_mask=mask, position_ids=counted).logits
        alone = model(input_ids=ids[1:, 2:]).logits
    torch.testing.assert_close(found[1:, 2:], alone)


def test_what_reads_or_extends_whole_examples_is_all_that_refuses() -> None:
    refused = set()
    for method in FREE:
        if method.name == "head":  # tied to the embedding, it is none of its own
            continue
        model = by_name("gpt2").model()
        trimtab.attach(model, method)
        if _refusal(model):
            refused.add(method.name)
    whole = {"coda", "knowledge", "p-tuning", "prompt", "reft", "unipelt"}
    assert refused == whole | {"gated-adapter", "gated-lora", "gated-prefix"}


def test_a_cache_that_would_mix_them_is_told_of() -> None:
    model = by_name("llama").model()
    attach(model, trimtab.LoRA())
    with pytest.warns(UserWarning, match="lets them see each other.*use_cache=False"):
        model(**{**packed(texts()), "use_cache": None})


@pytest.mark.parametrize("method", [trimtab.LoRA(), trimtab.PrefixTuning(length=3)])
def test_each_row_may_have_an_adapter_of_its_own(method: Method) -> None:
    model = by_name("llama").model()
    for name in "ab":
        perturb(trimtab.attach(model, method, name=name))
    batch = packed(texts())
    both = {"input_ids": batch["input_ids"].repeat(2, 1), "use_cache": False}
    both["position_ids"] = batch["position_ids"].repeat(2, 1)
    with torch.no_grad():
        trimtab.activate(model, trimtab.Route("a", "b"))
        found = model(**both, route=["a", "b"]).logits
        for row, name in enumerate("ab"):
            trimtab.activate(model, name)
            torch.testing.assert_close(found[row], alone(model, texts()), atol=2e-4, rtol=1e-4)


def test_checkpointing_changes_nothing() -> None:
    model = by_name("llama").model().train()
    perturb(attach(model, trimtab.LoRA()))
    trimtab.kernels.blockwise(model)
    trained = trimtab.parameters(model)
    expected = torch.autograd.grad(model(**packed(texts())).loss, trained)
    model.activation_checkpointing_enable()
    found = torch.autograd.grad(model(**packed(texts())).loss, trained)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_windows_stay_windows() -> None:
    config = MistralConfig(**architectures.LLAMA, sliding_window=4)
    model = MistralForCausalLM(config).eval()
    perturb(attach(model, trimtab.LoRA()))
    trimtab.kernels.blockwise(model)
    with torch.no_grad():
        found = model(**packed(texts())).logits[0]
        torch.testing.assert_close(found, alone(model, texts()), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [trimtab.PromptTuning(length=2), trimtab.PrefixTuning(length=2)])
@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_positions_may_be_given(name: str, method: Method) -> None:
    """As the model would count them itself: RoBERTa's begin behind its padding's row."""
    model = by_name(name).model()
    perturb(attach(model, method))
    room = 40 - 2 - 2 * (name == "roberta")
    ids = tokens(1, room)
    counted = torch.arange(room)[None] + 2 * (name == "roberta")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids, position_ids=counted).logits, expected)
        longer = torch.cat([counted, counted[:, -1:] + 1], 1)
        with pytest.raises(InputError, match="do not fit"):
            model(input_ids=tokens(1, room + 1), position_ids=longer)


@pytest.mark.parametrize("method", [trimtab.PromptTuning(length=2), trimtab.PrefixTuning(length=2)])
def test_compiled(method: Method) -> None:
    model = by_name("gpt2").model()
    perturb(attach(model, method))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = tokens(1, 12)
    given = {"input_ids": ids, "position_ids": torch.arange(12)[None], "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given).logits, model(**given).logits)
        if method.name == "prompt":
            with pytest.raises(RuntimeError, match="packed into one row"):
                compiled(**given | {"position_ids": torch.arange(12)[None] % 6})


def test_blocks_look_at_their_own_examples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys before the first and behind the last that a block sees cost nothing."""
    from trimtab.kernels import attention

    monkeypatch.setattr(attention, "_BLOCK", 4)
    number = torch.arange(6).repeat_interleave(4)
    mask = ((number[:, None] == number) & torch.ones(24, 24).tril().bool())[None, None]
    q = torch.randn(1, 2, 24, 8)
    seen = [keys for _, keys, _ in attention._blocks(q, q, mask, False)]
    assert seen == [slice(a, b) for a, b in itertools.pairwise(range(0, 25, 4))]
