"""Prompts and prefixes while tokens are generated: the same whatever the cache, with beams, padding
and routes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from prompted import logits, tiny, tokens
from torch import Tensor

import trimtab
from trimtab.core.errors import InputError
from trimtab.testing.architectures import LLAMA

DECODERS = ["llama", "qwen3", "gpt2"]
NAMES = pytest.mark.parametrize("name", [*DECODERS, "t5", "bart"])
ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa"])
SHARED = Path(__file__).parents[3] / "shared" / "models"

GREEDY = {"max_new_tokens": 9, "do_sample": False}
BEAMS = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}


def _prompt(model: Any, name: str = "prompt") -> str:
    adapter = trimtab.attach(model, trimtab.PromptTuning(length=3), name=name)
    _perturb(adapter, 0.3)
    return name


def _prefix(model: Any, name: str = "prefix") -> str:
    _perturb(trimtab.attach(model, trimtab.PrefixTuning(length=4), name=name), 0.3)
    return name


def _p_tuning(model: Any) -> str:
    _perturb(trimtab.attach(model, trimtab.PTuning(length=3, encoder="lstm"), name="made"), 0.1)
    return "made"


def _all(model: Any) -> trimtab.Stack:
    _perturb(trimtab.attach(model, trimtab.LoRA(rank=2), name="lora"), 0.1)
    return trimtab.Stack(_prompt(model), _prefix(model), "lora", _prompt(model, "second"))


def _decoders(model: Any) -> str:
    """A prompt and a prefix of the decoder alone."""
    to = "decoder-input" if model.config.is_encoder_decoder else "input"
    plan = {to: trimtab.PromptTuning(length=2), "self-attention": trimtab.PrefixTuning(length=2)}
    if model.config.is_encoder_decoder:
        plan["cross-attention"] = trimtab.PrefixTuning(length=3)
    _perturb(trimtab.attach(model, plan, name="both"), 0.3)
    return "both"


KINDS: list[Callable[[Any], Any]] = [_prompt, _prefix, _p_tuning, _all, _decoders]
KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__.strip("_"))


@torch.no_grad()
def _perturb(adapter: Any, by: float) -> None:
    for parameter in adapter.parameters():
        parameter.add_(by * torch.randn(parameter.shape))


def adapted(name: str, kind: Callable[[Any], Any], **options: Any) -> Any:
    model = tiny(name, **options)
    trimtab.activate(model, kind(model))
    return model


def left_padded() -> dict[str, Tensor]:
    ids, mask = tokens(3, 6), torch.ones(3, 6, dtype=torch.long)
    ids[1, :2], mask[1, :2] = 0, 0
    ids[2, :4], mask[2, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@ATTENTION
@KIND
@NAMES
def test_the_cache_changes_nothing(name: str, kind: Any, attention: str) -> None:
    model, inputs = adapted(name, kind, attn_implementation=attention), left_padded()
    expected = model.generate(**inputs, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    static = model.generate(**inputs, cache_implementation="static", **GREEDY)
    assert torch.equal(static, expected)
    more = {"decoder_input_ids": tokens(3, 2)} if model.config.is_encoder_decoder else {}
    found = logits(model, inputs | more)
    trimtab.activate(model, None)
    assert (logits(model, inputs | more) - found).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [_prompt, _prefix, _decoders], ids=["prompt", "prefix", "both"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_windows(name: str, kind: Any) -> None:
    """Where each position sees the last few alone, a static cache's masks do not show the rest."""
    config = hf.AutoConfig.for_model(
        name,
        **{**LLAMA, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    )
    model: Any = hf.AutoModelForCausalLM.from_config(config).eval()
    trimtab.activate(model, kind(model))
    inputs = {"input_ids": tokens(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    expected = model.generate(**inputs, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)
    if name == "mistral" and kind is not _prefix:
        with pytest.raises(InputError, match="nothing but windows"):
            model.generate(**inputs, cache_implementation="static", **GREEDY)
        return
    static = model.generate(**inputs, cache_implementation="static", **GREEDY)
    assert torch.equal(static, expected)


@KIND
@NAMES
def test_beams(name: str, kind: Any) -> None:
    model, inputs = adapted(name, kind), left_padded()
    expected = model.generate(**inputs, use_cache=False, **BEAMS)
    assert torch.equal(model.generate(**inputs, **BEAMS), expected)
    static = model.generate(**inputs, cache_implementation="static", **BEAMS)
    assert torch.equal(static, expected)


@ATTENTION
@KIND
@NAMES
def test_padding_changes_nothing(name: str, kind: Any, attention: str) -> None:
    """On the left before a decoder; on the right in an encoder, which counts padding among its
    positions."""
    model, inputs = adapted(name, kind, attn_implementation=attention), left_padded()
    if name not in DECODERS:
        inputs = {key: tensor.flip(1) for key, tensor in inputs.items()}
    found = model.generate(**inputs, **GREEDY)
    for i in range(3):
        alone = inputs["input_ids"][i][inputs["attention_mask"][i].bool()][None]
        row = model.generate(alone, **GREEDY)
        assert torch.equal(found[i, -9:], row[0, -9:])


@pytest.mark.parametrize("kind", [_prompt, _prefix], ids=["prompt", "prefix"])
@NAMES
def test_routes(name: str, kind: Callable[..., str]) -> None:
    """Each example generates what it would generate under its adapter alone; beams too."""
    model, inputs = tiny(name), left_padded()
    for one in "ab":
        kind(model, one)
    route = ["a", "b", "a"]
    for options in (GREEDY, {**GREEDY, "num_beams": 3}):
        alone = {}
        for one in "ab":
            trimtab.activate(model, one)
            alone[one] = model.generate(**inputs, **options)
        trimtab.activate(model, trimtab.Route("a", "b"))
        with trimtab.given(model, route=route):
            found = model.generate(**inputs, **options)
            static = model.generate(**inputs, cache_implementation="static", **options)
        expected = torch.stack([alone[one][i] for i, one in enumerate(route)])
        assert torch.equal(found, expected)
        assert torch.equal(static, expected)
    assert name == "bart" or not torch.equal(alone["a"], alone["b"])


def test_what_a_route_of_prompts_refuses() -> None:
    model, inputs = tiny("llama"), left_padded()
    _prompt(model, "a")
    trimtab.attach(model, trimtab.PromptTuning(length=5), name="long")
    trimtab.attach(model, trimtab.LoRA(), name="none")
    for parts, route, text in (
        (("a", "long"), ["a", "long", "a"], "one length"),
        (("a", "none"), ["a", "none", "a"], "puts nothing before"),
        (("a",), ["a", None, "a"], "puts nothing before"),
        (("a",), None, "say which acts"),
    ):
        trimtab.activate(model, trimtab.Route(*parts))
        with pytest.raises(trimtab.InputError, match=text):
            model(**inputs, route=route)
    with pytest.raises(trimtab.InputError, match=r"'a' has a prompt at .* cannot be mixed"):
        trimtab.activate(model, trimtab.Mix(a=0.5))


@pytest.mark.skipif(not (SHARED / "stories260K").is_dir(), reason="no trained model is here")
@KIND
def test_stories(kind: Any) -> None:
    """A trained Llama: a prompt of real words changes the story as those words would."""
    model = hf.LlamaForCausalLM.from_pretrained(SHARED / "stories260K").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(SHARED / "stories260K")
    trimtab.activate(model, kind(model))
    inputs = {"input_ids": torch.tensor([tokenizer.encode("Once upon a time")] * 2)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    options = {**GREEDY, "pad_token_id": 0}
    expected = model.generate(**inputs, use_cache=False, **options)
    for cache in ("dynamic", "static"):
        found = model.generate(**inputs, cache_implementation=cache, **options)
        assert torch.equal(found, expected)


@pytest.mark.skipif(not (SHARED / "stories260K").is_dir(), reason="no trained model is here")
def test_a_prompt_of_words_is_those_words() -> None:
    """Before the input stands what the words' own embeddings are: the story goes on the same."""
    model = hf.LlamaForCausalLM.from_pretrained(SHARED / "stories260K").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(SHARED / "stories260K")
    words = tokenizer.encode("Once upon a time, there was a little girl named Lily")
    options = {**GREEDY, "max_new_tokens": 20, "pad_token_id": 0}
    plain = model.generate(torch.tensor([words]), **options)[:, len(words) :]
    start, rest = words[:6], words[6:]
    trimtab.attach(model, trimtab.PromptTuning(length=6, start=start))
    found = model.generate(torch.tensor([rest]), **options)[:, len(rest) :]
    assert torch.equal(found, plain)


@pytest.mark.skipif(not (SHARED / "bart-g2p-us").is_dir(), reason="no trained model is here")
@KIND
def test_pronunciations(kind: Any) -> None:
    """A trained BART, with one layer each and a scaled embedding or not."""
    model = hf.BartForConditionalGeneration.from_pretrained(SHARED / "bart-g2p-us").eval()
    trimtab.activate(model, kind(model))
    ids = torch.randint(5, 30, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for options in (GREEDY, BEAMS):
        expected = model.generate(**inputs, use_cache=False, **options)
        for cache in ("dynamic", "static"):
            found = model.generate(**inputs, cache_implementation=cache, **options)
            assert torch.equal(found, expected)
