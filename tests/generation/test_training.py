"""Prompts and prefixes while a model is trained and called: gradients, shapes of outputs, what does
not fit, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from prompted import MODELS, batch, logits, tiny
from torch import nn

import trimtab

NAMES = pytest.mark.parametrize("name", list(MODELS))
ENCODERS = ("bert", "roberta", "albert", "distilbert")
PLAN = {"input": trimtab.PromptTuning(length=3), "self-attention": trimtab.PrefixTuning(length=2)}


def adapted(name: str, **options: Any) -> Any:
    """A prompt, a prefix and LoRA together."""
    model = tiny(name, **options)
    trimtab.attach(model, trimtab.PromptTuning(length=3), name="prompt")
    trimtab.attach(model, trimtab.PrefixTuning(length=2), name="prefix")
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), name="lora")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    trimtab.activate(model, trimtab.Stack("prompt", "prefix", "lora"))
    return model


def gradients(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).logits.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "albert"])  # which cannot checkpoint
def test_checkpointing(name: str, attention: str) -> None:
    model, inputs = adapted(name, attn_implementation=attention).train(), batch(name)
    expected = gradients(model, inputs)
    assert len(expected) == len(trimtab.parameters(model))
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    for reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        found = gradients(model, inputs)
        assert found.keys() == expected.keys()
        for key, gradient in found.items():
            off = (gradient - expected[key]).norm() / expected[key].norm()
            assert off < 1e-3, key  # T5's weights are large, and so is their rounding


@NAMES
def test_two_prompts_are_one_after_the_other(name: str) -> None:
    model, inputs = tiny(name), batch(name)
    a = trimtab.attach(model, trimtab.PromptTuning(length=2), name="a").members[0]
    b = trimtab.attach(model, trimtab.PromptTuning(length=3), name="b").members[0]
    both = trimtab.attach(model, trimtab.PromptTuning(length=5), name="both").members[0]
    with torch.no_grad():
        both.P.copy_(torch.cat([a.P, b.P]))
    expected = logits(model, inputs)
    trimtab.activate(model, trimtab.Stack("a", "b"))
    assert torch.equal(logits(model, inputs), expected)
    trimtab.activate(model, trimtab.Stack("b", "a"))
    assert (logits(model, inputs) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@NAMES
def test_routes(name: str, method: str) -> None:
    model, inputs = tiny(name), batch(name)
    alone = {}
    for one in "ab":
        trimtab.attach(model, trimtab.core.registry.build(method, {"length": 3}), name=one)
        alone[one] = logits(model, inputs)
    trimtab.activate(model, trimtab.Route("a", "b"))
    found = logits(model, {**inputs, "route": ["b", "a"]})
    real = slice(0, 5)  # what stands at padding is nobody's
    torch.testing.assert_close(found[0, real], alone["b"][0, real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, real], alone["a"][1, real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_rows_of_a_left_padded_batch_are_those_alone(name: str) -> None:
    model, ids = adapted(name), batch(name)["input_ids"].clone()
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, {"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    expected = logits(model, {"input_ids": ids[1:, 3:]})
    torch.testing.assert_close(found[1:, 3:], expected, rtol=1e-4, atol=1e-4)


@NAMES
def test_lengths_of_outputs(name: str) -> None:
    """Where the prompt is cut off, states have the input's positions alone; attention looks at the
    prompt and the prefix; the last output has what was asked for."""
    model, inputs = adapted(name, attn_implementation="eager"), batch(name)
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    prefix, prompt, T = 2, 3, 7
    if name in ("t5", "bart"):
        states, attention, length = out.encoder_hidden_states, out.encoder_attentions, prompt + T
        assert out.encoder_last_hidden_state.shape[1] == prompt + T
        assert out.logits.shape[1] == 5
        assert [a.shape[-2:] for a in out.decoder_attentions] == [(5, prefix + 5)] * 3
        assert [a.shape[-2:] for a in out.cross_attentions] == [(5, prompt + T)] * 3
    else:
        states, attention, length = out.hidden_states, out.attentions, T
        assert out.logits.shape == ((2, 3) if name in ENCODERS else (2, T, 60))
    assert len(states) == 4
    assert {s.shape[1] for s in states[:-1]} == {length}
    assert [a.shape[-2:] for a in attention] == [(prompt + T, prefix + prompt + T)] * 3
    kept = tiny(name)
    trimtab.attach(kept, trimtab.PromptTuning(length=prompt, keep=True))
    stack = kept.get_encoder() if name in ("t5", "bart") else kept.base_model
    only = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    assert stack(**only).last_hidden_state.shape[1] == prompt + T


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "albert", "distilbert", "bart"])
def test_what_does_not_fit_is_said(name: str, method: str) -> None:
    model = tiny(name)
    room = 40 - 2 * (name == "roberta")
    trimtab.attach(model, trimtab.core.registry.build(method, {"length": 6}))
    fits = torch.full((1, room - 6), 5)
    assert model(fits).logits.isfinite().all()
    with pytest.raises(trimtab.InputError, match=rf"{room + 1} positions do not .* learned {room}"):
        model(torch.full((1, room - 5), 5))
    trimtab.activate(model, None)
    assert model(torch.full((1, room), 5)).logits.isfinite().all()


def test_attention_of_its_own_is_refused() -> None:
    """Models that do not take their attention from transformers' registry have no place for a
    prefix."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    models = [
        hf.XLNetModel(hf.XLNetConfig(vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48)),
        hf.DebertaV2Model(hf.DebertaV2Config(**sizes, intermediate_size=48)),
        hf.BloomModel(hf.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
    ]
    for model in models:
        with pytest.raises(trimtab.SiteNotFound, match=r"'self-attention'.*prefix can extend"):
            trimtab.attach(model, trimtab.PrefixTuning())
        assert not any("deltas" in name for name, _ in model.named_modules())


def test_another_attention_function_is_refused() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(trimtab.SiteNotFound, match="attn_implementation='sdpa'"):
        trimtab.attach(model, trimtab.PrefixTuning())
    assert not any("deltas" in name for name, _ in model.named_modules())


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def _vit() -> Any:
    config = hf.ViTConfig(**SMALL, intermediate_size=48, image_size=8, patch_size=4)
    return hf.ViTModel(config)


def _whisper() -> Any:
    return hf.WhisperModel(
        hf.WhisperConfig(
            vocab_size=60,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=10,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def test_images_and_sounds_take_no_prompt() -> None:
    """They have no token embeddings to stand before; a prefix needs none."""
    for model in (_vit(), _whisper().get_encoder()):
        with pytest.raises(trimtab.SiteNotFound, match="takes the input's token embeddings"):
            trimtab.attach(model, trimtab.PromptTuning())
    with pytest.raises(trimtab.SiteNotFound, match="takes no token embeddings"):
        trimtab.attach(_vit(), trimtab.PromptTuning(), "stack")
    images = _vit().eval()
    x = torch.randn(2, 3, 8, 8)
    base = images(x).last_hidden_state
    trimtab.attach(images, trimtab.PrefixTuning(length=2))
    assert (images(x).last_hidden_state - base).abs().max() > 1e-3


@pytest.mark.parametrize("target", ["decoder-input", "self-attention", "cross-attention"])
def test_a_decoder_of_sounds(target: str) -> None:
    model = _whisper().eval()
    inputs = {
        "input_features": torch.randn(1, 8, 20),
        "decoder_input_ids": torch.tensor([[1, 5, 6]]),
    }
    base = model(**inputs).last_hidden_state
    prompt = target == "decoder-input"
    kind = trimtab.PromptTuning if prompt else trimtab.PrefixTuning
    trimtab.attach(model, kind(length=2), target)
    found = model(**inputs).last_hidden_state
    assert found.shape == base.shape
    assert (found - base).abs().max() > 1e-4


def test_a_text_encoder_of_clip() -> None:
    sizes = {"vocab_size": 60, **SMALL, "intermediate_size": 48, "max_position_embeddings": 20}
    model = hf.CLIPTextModel(hf.CLIPTextConfig(**sizes, eos_token_id=2)).eval()
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 2]])}
    base = model(**inputs).last_hidden_state
    trimtab.attach(model, trimtab.PrefixTuning(length=2))
    found = model(**inputs).last_hidden_state
    assert (found - base).abs().max() > 1e-4
    trimtab.detach(model)
    with pytest.raises(trimtab.SiteNotFound, match="takes the input's token embeddings"):
        trimtab.attach(model, trimtab.PromptTuning(length=2))
    assert torch.equal(model(**inputs).last_hidden_state, base)
