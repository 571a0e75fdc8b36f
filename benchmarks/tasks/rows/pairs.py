"""Pictures of digits with captions that were written here, and vectors of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from row import OF_IMAGENET, Make, Row

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "a",
    "the",
    "digit",
    "number",
    "handwritten",
    "of",
    "photo",
    *NAMES,
)
_SIDE = 28


def digits(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (10000, 28, 28) and labels (10000,)."""
    folder = shared / "mnist_t10k"
    pictures, labels = (next(folder.glob(f"*{what}*ubyte*")) for what in ("images", "labels"))
    return np.frombuffer(_read(pictures)[16:], np.uint8).reshape(-1, _SIDE, _SIDE), np.frombuffer(
        _read(labels)[8:], np.uint8
    )


def _read(path: Path) -> bytes:
    import gzip

    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def captioned(shared: Path, out: Path) -> None:
    """Digits from the data set's second half, each with the caption "a handwritten seven"."""
    from PIL import Image

    pictures, labels = digits(shared)
    for split, (first, last) in {
        "train": (5000, 8000),
        "validation": (8000, 8500),
        "test": (9000, 10000),
    }.items():
        (out / split).mkdir(parents=True)
        rows = []
        for i in range(first, last):
            Image.fromarray(pictures[i]).convert("RGB").save(out / split / f"{i}.png")
            rows.append({"image": f"{split}/{i}.png", "text": f"a handwritten {NAMES[labels[i]]}"})
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")


def clip(shared: Path, out: Path) -> None:
    """A small CLIP that has seen digits of the first half upside down, in negative, under other
    captions: adapting it is more than waking it up."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    tokens.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128}
    reads = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 12}
    reads |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sees = {**sizes, "image_size": _SIDE, "patch_size": 7}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=reads, vision_config=sees, projection_dim=64))
    side = {"height": _SIDE, "width": _SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=side)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for pixels, captions in _turned(shared / "data", 900):
        read = tokenizer(captions, return_tensors="pt", padding=True)
        read.pop("token_type_ids", None)
        model(**read, pixel_values=pixels, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for part in (model, processor, tokenizer):
        part.save_pretrained(out)


def _turned(data: Path, steps: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Batches of one picture for each digit, so that no caption is there twice."""
    pictures, labels = digits(data)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's own
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    draw = np.random.default_rng(0)
    places = [np.flatnonzero(labels[:5000] == digit) for digit in range(10)]
    for _ in range(steps):
        chosen = [draw.choice(one) for one in places]
        seen = torch.from_numpy(255 - pictures[chosen][:, ::-1].copy()).float()[:, None] / 255
        yield (seen - mean) / deviation, [f"the number {name}" for name in NAMES]


DATA: dict[str, Make] = {"captioned-digits": captioned}
MODELS: dict[str, Make] = {"clip-turned": clip}
ROWS = {
    "captions": Row(
        *("zero-shot-image-classification", "clip-turned", "captioned-digits"),
        steps=300,
        rates={"lora": 3e-3, "bitfit": 3e-3, "full": 3e-4},
    ),
    "digit-vectors": Row(
        *("image-feature-extraction", "deit-tiny-patch16-224", "mnist_t10k"),
        steps=60,
        options=(*OF_IMAGENET, "--batch-size", "32"),
        methods=("lora", "bitfit"),
    ),
}
