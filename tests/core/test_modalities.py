"""Parts of models that see, hear and read, found in families that name them differently."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import trimtab as tt
from trimtab.core.errors import SiteNotFound
from trimtab.core.modalities import parts
from trimtab.core.registry import lookup
from trimtab.match import sites

S = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEES = {**S, "image_size": 32, "patch_size": 16}
READS = {**S, "vocab_size": 50, "max_position_embeddings": 32}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def clip() -> nn.Module:
    config = hf.CLIPConfig(text_config={**READS, **ENDS}, vision_config=SEES, projection_dim=8)
    return hf.CLIPModel(config)


def siglip() -> nn.Module:
    return hf.SiglipModel(hf.SiglipConfig(text_config={**READS, **ENDS}, vision_config=SEES))


def llava() -> nn.Module:
    text = hf.LlamaConfig(**READS, **ENDS)
    sees = hf.CLIPVisionConfig(**SEES)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=sees, text_config=text, image_token_id=49)
    )


def idefics3() -> nn.Module:
    text = hf.LlamaConfig(**READS, **ENDS)
    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(vision_config=SEES, text_config=text, image_token_id=49, scale_factor=2)
    )


def qwen2_audio() -> nn.Module:
    sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2}
    hears = hf.Qwen2AudioEncoderConfig(
        **sizes, encoder_ffn_dim=32, num_mel_bins=8, max_source_positions=20
    )
    text = hf.Qwen2Config(**READS, **ENDS)
    return hf.Qwen2AudioForConditionalGeneration(
        hf.Qwen2AudioConfig(audio_config=hears, text_config=text, audio_token_index=49)
    )


def whisper() -> nn.Module:
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }
    lengths = {"max_source_positions": 20, "max_target_positions": 20, "vocab_size": 50}
    config = hf.WhisperConfig(d_model=16, **sides, **lengths, **ENDS, decoder_start_token_id=1)
    return hf.WhisperForConditionalGeneration(config)


def git() -> nn.Module:
    return hf.GitForCausalLM(hf.GitConfig(**READS, **ENDS, vision_config=SEES))


MADE: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "clip": (clip, {"vision": 12, "text": 12, "connector": 2}),
    "siglip": (siglip, {"vision": 16, "text": 13}),
    "llava": (llava, {"vision": 12, "text": 14, "connector": 2}),
    "idefics3": (idefics3, {"vision": 12, "text": 14, "connector": 1}),
    "qwen2-audio": (qwen2_audio, {"audio": 12, "text": 14, "connector": 1}),
    "whisper": (whisper, {"audio": 12, "text": 20}),
    "git": (git, {"vision": 12, "text": 13}),
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MADE[name][0]()


@pytest.mark.parametrize("name", MADE)
def test_a_part_is_its_linear_maps(name: str) -> None:
    model, expected = made(name), MADE[name][1]
    covered: set[str] = set()
    for part, count in expected.items():
        found = [site for site, _ in tt.attach(model, tt.LoRA(rank=2), to=part, name=part).deltas()]
        assert len(found) == count
        covered |= set(found)
    every = tt.attach(model, tt.LoRA(rank=2), to="all-linear", name="every")
    assert covered == {site for site, _ in every.deltas()}  # every map lies in one part


def test_a_role_within_a_part() -> None:
    model = made("llava")
    adapter = tt.attach(model, tt.LoRA(rank=2), to=["vision:attention", "connector"])
    found = [site for site, _ in adapter.deltas()]
    assert len(found) == 8 + 2
    assert all("vision_tower" in site or "projector" in site for site in found)
    norms = tt.attach(model, lookup("ln")(), to="vision:norms", name="norms")
    assert {site.split(".")[1] for site, _ in norms.deltas()} == {"vision_tower"}


def test_parts_that_are_not_there() -> None:
    with pytest.raises(SiteNotFound, match=r"no part 'audio'.*its parts are text, vision"):
        tt.attach(made("siglip"), tt.LoRA(rank=2), to="audio:attention")
    plain = hf.BertModel(hf.BertConfig(**READS))
    assert parts(plain) == {}
    assert {site.part for site in sites(plain)} == {None}
    with pytest.raises(SiteNotFound, match=r"no part 'vision'.*of one modality"):
        tt.attach(plain, tt.LoRA(rank=2), to="vision:attention")
