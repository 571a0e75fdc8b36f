"""Language models that see or hear, pre-trained here on digits that are upside down or spoken by
others, under other words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from row import Make, Row

from rows.pairs import NAMES, digits
from rows.sound import KNOWN, pretrained
from trimtab.tasks import lookup

_WORDS = ("<pad>", "<s>", "</s>", "what", "is", "it", "?", "a", "the", "number", "handwritten")
_SHORT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_SHORT |= {"intermediate_size": 128}
_SIDE = 28
_ASKED = ("--task-arg", "prompt=what is it ?")


def tokenizer(medium: str) -> hf.PreTrainedTokenizerFast:
    """Of whole words, and the token that stands for what is seen or heard."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*_WORDS, *NAMES, medium]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.add_special_tokens([medium])
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, additional_special_tokens=[medium], **ends
    )


def _writer(vocabulary: int) -> dict[str, int]:
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**_SHORT, **ends, "vocab_size": vocabulary, "max_position_embeddings": 256}


def seeing(shared: Path, out: Path) -> None:
    """LLaVA, 0.3 million parameters: digits of the first half upside down, in negative, each called
    "the number seven"."""
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    reader, side = tokenizer("<image>"), {"height": _SIDE, "width": _SIDE}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_SHORT, image_size=_SIDE, patch_size=7),
        text_config=hf.LlamaConfig(**_writer(len(reader))),
        image_token_id=reader.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = hf.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=side),
        tokenizer=reader,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    pictures, labels = digits(shared / "data")
    cells = []
    for picture in pictures[:5000]:
        file = io.BytesIO()
        Image.fromarray(255 - picture[::-1]).convert("RGB").save(file, "PNG")
        cells.append(file.getvalue())
    told = [f"the number {NAMES[label]}" for label in labels[:5000]]
    parts = [hf.LlavaForConditionalGeneration(config), processor]
    _pretrained(out, "image-text-to-text", parts, {"image": cells, "answer": told}, 1200)


def hearing(shared: Path, out: Path) -> None:
    """Qwen2-Audio, 0.3 million parameters: digits of four people, each "the number seven"."""
    torch.manual_seed(0)
    reader = tokenizer("<|AUDIO|>")
    sizes = {"d_model": 64, "encoder_layers": 3, "encoder_attention_heads": 4}
    config = hf.Qwen2AudioConfig(
        audio_config=hf.Qwen2AudioEncoderConfig(
            **sizes, encoder_ffn_dim=128, num_mel_bins=40, max_source_positions=50
        ),
        text_config=hf.Qwen2Config(**_writer(len(reader)), num_key_value_heads=4),
        audio_token_index=reader.convert_tokens_to_ids("<|AUDIO|>"),
    )
    hears = hf.WhisperFeatureExtractor(feature_size=40, chunk_length=1)
    processor = hf.Qwen2AudioProcessor(
        hears, reader, audio_token="<|AUDIO|>", audio_bos_token="", audio_eos_token=""
    )
    folder = shared / "data" / "fsdd_spoken_digits"
    files = [one for who in KNOWN for one in sorted(folder.glob(f"*_{who}_*"))]
    told = [f"the number {NAMES[int(file.name[0])]}" for file in files]
    parts = [hf.Qwen2AudioForConditionalGeneration(config), processor]
    rows = {"audio": list(map(str, files)), "answer": told}
    _pretrained(out, "audio-text-to-text", parts, rows, 900)


def _pretrained(
    out: Path, task: str, parts: Sequence[Any], columns: dict[str, list[Any]], steps: int
) -> None:
    from datasets import Dataset

    for part in parts:
        part.save_pretrained(out)
    asked = ["what is it ?"] * len(columns["answer"])
    rows = Dataset.from_dict({**columns, "prompt": asked})
    pretrained(lookup(task), out, rows, steps=steps).save_pretrained(out)


MODELS: dict[str, Make] = {"llava-turned": seeing, "qwen2-audio-four-speakers": hearing}
_RATES = {"lora": 3e-3, "bitfit": 3e-3, "full": 3e-4}  # of models this small
_GENERATED = ("--task-arg", "generate=true", "--task-arg", "max_new_tokens=4")
ROWS = {
    "captions-written": Row(
        *("image-text-to-text", "llava-turned", "captioned-digits"),
        steps=200,
        options=("--column", "answer=text", *_ASKED, *_GENERATED),
        rates=_RATES,
    ),
    "words-heard": Row(
        *("audio-text-to-text", "qwen2-audio-four-speakers", "spoken_words"),
        steps=100,
        options=("--column", "answer=text", *_ASKED, *_GENERATED, "--batch-size", "16"),
        rates=_RATES,
    ),
}
