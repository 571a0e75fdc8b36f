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
