"""Tiny random models of pictures with texts, and pictures of three colours with captions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

COLOURS = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (20, 40, 230)}
WORDS = ["<pad>", "<s>", "</s>", "a", "picture", "of", *COLOURS]
SHORT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT |= {"intermediate_size": 64}
SEES = {**SHORT, "image_size": 32, "patch_size": 16}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    tokens.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def write(folder: Path, kind: str) -> Path:
    """`clip` or `siglip` with its processor and tokenizer, or `vit` with its processor."""
    reads = {**SHORT, "vocab_size": len(WORDS), "max_position_embeddings": 12}
    reads |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "clip":
            model = hf.CLIPModel(hf.CLIPConfig(text_config=reads, vision_config=SEES))
        elif kind == "siglip":
            model = hf.SiglipModel(hf.SiglipConfig(text_config=reads, vision_config=SEES))
        else:
            model = hf.ViTModel(hf.ViTConfig(**SEES))
    model.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    if kind == "vit":
        ViTImageProcessorPil(size=side).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def reader(token: str) -> hf.PreTrainedTokenizerFast:
    """Of the words of small questions and answers, and a token that stands for what is seen."""
    words = [*WORDS, "what", "is", "it", "?", token]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.add_special_tokens([token])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[token],
    )


def _writer(vocabulary: int) -> dict[str, int]:
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**SHORT, **ends, "vocab_size": vocabulary, "max_position_embeddings": 128}


def write_llava(folder: Path) -> Path:
    """A LLaVA that sees four patches."""
    tokenizer, side = reader("<image>"), {"height": 32, "width": 32}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SEES),
        text_config=hf.LlamaConfig(**_writer(len(tokenizer))),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    hf.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def write_listener(folder: Path) -> Path:
    """A Qwen2-Audio that hears two seconds."""
    tokenizer = reader("<|AUDIO|>")
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
    config = hf.Qwen2AudioConfig(
        audio_config=hf.Qwen2AudioEncoderConfig(
            **sizes, encoder_ffn_dim=64, num_mel_bins=16, max_source_positions=100
        ),
        text_config=hf.Qwen2Config(
            **{**_writer(len(tokenizer)), "max_position_embeddings": 256, "num_key_value_heads": 2}
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    hears = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    hf.Qwen2AudioProcessor(
        hears, tokenizer, audio_token="<|AUDIO|>", audio_bos_token="", audio_eos_token=""
    ).save_pretrained(folder)
    return folder


def sounds(folder: Path, name: str, count: int = 24) -> Path:
    """A file of rows, each a tone, low, middling or high, and the colour that stands for it."""
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        wave = 0.5 * np.sin(2 * np.pi * (200, 800, 3000)[i % 3] * np.arange(8000) / 16_000)
        soundfile.write(folder / f"{i}.wav", wave, 16_000)
        rows.append({"audio": f"{i}.wav", "answer": list(COLOURS)[i % 3]})
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return folder / name


def pictures(folder: Path, name: str, count: int = 30, key: str = "text") -> Path:
    """A file of rows, each a picture in one of the colours, and its caption or label."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        noise = torch.randint(-20, 20, (32, 32, 3), generator=generator)
        pixels = (torch.tensor(COLOURS[colour]) + noise).clamp(0, 255).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        told = f"a picture of {colour}" if key == "text" else colour
        rows.append({"image": f"{i}.png", key: told})
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return folder / name
