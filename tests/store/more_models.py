"""More tiny architectures: what HF PEFT's files must be read on."""

from __future__ import annotations

from typing import Any

import cases
import torch
import transformers as hf
from torch import Tensor, nn

from trimtab.testing import architectures

HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT = {**HIDDEN, **QUIET, "vocab_size": cases.VOCAB, "intermediate_size": 64}
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LABELS = {"num_labels": 3, "initializer_range": architectures.INIT}


def roberta() -> nn.Module:
    config = hf.RobertaConfig(**TEXT, **LABELS, max_position_embeddings=40)
    return hf.RobertaForSequenceClassification(config)


def albert() -> nn.Module:
    config = hf.AlbertConfig(**TEXT, **LABELS, embedding_size=16, classifier_dropout_prob=0.0)
    return hf.AlbertForSequenceClassification(config)


def distilbert() -> nn.Module:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": cases.VOCAB}
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    config = hf.DistilBertConfig(**sizes, **quiet, **LABELS, max_position_embeddings=32)
    return hf.DistilBertForSequenceClassification(config)


def xlnet() -> nn.Module:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": cases.VOCAB}
    config = hf.XLNetConfig(**sizes, **LABELS, dropout=0.0, summary_last_dropout=0.0)
    return hf.XLNetForSequenceClassification(config)


def qwen() -> nn.Module:
    config = hf.Qwen2Config(
        **HIDDEN,
        vocab_size=cases.VOCAB,
        intermediate_size=64,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=architectures.INIT,
        tie_word_embeddings=True,
    )
    return hf.Qwen2ForCausalLM(config)


def bart() -> nn.Module:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": cases.VOCAB, "d_model": 32}
    quiet = {"dropout": 0.0, "max_position_embeddings": 32, "init_std": architectures.INIT}
    ends = {**ENDS, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    config = hf.BartConfig(**layers, **heads, **wide, **quiet, **ends)
    return hf.BartForConditionalGeneration(config)


def vit() -> nn.Module:
    config = hf.ViTConfig(
        **HIDDEN, **QUIET, **LABELS, intermediate_size=64, image_size=16, patch_size=8
    )
    return hf.ViTForImageClassification(config)


def whisper() -> nn.Module:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": cases.VOCAB, "d_model": 32}
    sizes = {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
    quiet = {"dropout": 0.0, "init_std": architectures.INIT}
    ends = {**ENDS, "decoder_start_token_id": 1, "suppress_tokens": None}
    config = hf.WhisperConfig(**layers, **heads, **wide, **sizes, **quiet, **ends)
    return hf.WhisperForConditionalGeneration(config)


def _classes() -> dict[str, Tensor]:
    return {**architectures._text(), "labels": torch.tensor([0, 2])}


def _tokens() -> dict[str, Tensor]:
    return {**architectures._text(), "labels": architectures.tokens(2, 7)}


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


ARCHITECTURES = [
    cases.Architecture("roberta", roberta, _classes),
    cases.Architecture("albert", albert, _classes),
    cases.Architecture("distilbert", distilbert, _classes),
    cases.Architecture("xlnet", xlnet, _classes),
    cases.Architecture("qwen", qwen, _tokens),
    cases.Architecture("bart", bart, _tokens),
    cases.Architecture(
        "vit",
        vit,
        lambda: {"pixel_values": _noise(2, 3, 16, 16), "labels": torch.tensor([0, 2])},
    ),
    cases.Architecture(
        "whisper",
        whisper,
        lambda: {"input_features": _noise(2, 8, 16), "labels": architectures.tokens(2, 5)},
    ),
]
EVERY = [*cases.ARCHITECTURES, *ARCHITECTURES]


def by_name(name: str) -> cases.Architecture:
    return next(one for one in EVERY if one.name == name)
