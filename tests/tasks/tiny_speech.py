"""Tiny random models that write down speech, as a checkpoint is: weights, extractor, tokenizer."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 8000


def aligned(**changes: Any) -> tuple[Any, ...]:
    """wav2vec 2.0 with CTC: 50 frames a second, and no tokenizer."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    convolutions = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4)}
    places = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = hf.Wav2Vec2Config(
        **sizes,
        **convolutions,
        **places,
        intermediate_size=64,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        **changes,
    )
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    return hf.Wav2Vec2ForCTC(config), extractor


def spelling(folder: Path, letters: str = LETTERS) -> Any:
    """A tokenizer of CTC's, of these letters."""
    import json

    file = folder / "letters.json"
    tokens = ["<pad>", "<unk>", "|", *letters]
    file.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = hf.Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    file.unlink()
    return tokenizer


def writing() -> tuple[Any, ...]:
    """Whisper, which spells, and hears a second."""
    special = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    letters = sorted([*LETTERS, "Ġ"])
    vocabulary = {token: i for i, token in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = hf.WhisperTokenizer(vocabulary, [])
    tokenizer.add_tokens([hf.AddedToken(one, special=True, normalized=False) for one in special])
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(special[0])
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = hf.WhisperConfig(
        **sides,
        d_model=16,
        vocab_size=len(tokenizer),
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=24,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    extractor = hf.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return hf.WhisperForConditionalGeneration(config), extractor, tokenizer


MADE = {"aligned": aligned, "writing": writing}


def written(name: str, folder: Path) -> Path:
    """The model's folder below this one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = MADE[name]()
    for part in parts:
        part.save_pretrained(folder / name)
    return folder / name


def transcripts(path: Path, recordings: Iterable[Path]) -> Path:
    """A file of recordings of digits with what they say."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "text"])
        rows.writerows((one, WORDS[int(one.name[0])]) for one in recordings)
    return path
