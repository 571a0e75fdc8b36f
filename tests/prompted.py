"""Tiny models, and HF PEFT's tensors of prompts and prefixes as Trimtab's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from trimtab.core.adapter import Adapter

VOCAB, WIDTH = 60, 32


def tiny(name: str, **more: Any) -> Any:
    """A small random model whose every site matters, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name](**more).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter * (5 if parameter.ndim > 1 else 1))
    return model


def _encoder(kind: Any, config: Any, **more: Any) -> Any:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
    return kind(
        config(
            vocab_size=VOCAB,
            intermediate_size=48,
            max_position_embeddings=40,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
            **{"pad_token_id": 1, **sizes, **more},
        )
    )


def _llama(**more: Any) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
            **more,
        )
    )


def _qwen3(**more: Any) -> Any:
    return hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
            **more,
        )
    )


def _gpt2(**more: Any) -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=WIDTH,
            n_layer=3,
            n_head=4,
            n_positions=40,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
            **more,
        )
    )


def _t5(**more: Any) -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB,
            d_model=WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            eos_token_id=None,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            **more,
        )
    )


def _bart(**more: Any) -> Any:
    return hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=VOCAB,
            d_model=WIDTH,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=40,
            dropout=0.0,
            scale_embedding=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            forced_eos_token_id=None,
            decoder_start_token_id=1,
            **more,
        )
    )


def _distilbert(**more: Any) -> Any:
    return hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(
            vocab_size=VOCAB,
            dim=WIDTH,
            n_layers=3,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=40,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            num_labels=3,
            **more,
        )
    )


MODELS: dict[str, Any] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
    "t5": _t5,
    "bart": _bart,
    "bert": lambda **more: _encoder(hf.BertForSequenceClassification, hf.BertConfig, **more),
    "roberta": lambda **more: _encoder(
        hf.RobertaForSequenceClassification, hf.RobertaConfig, **more
    ),
    "albert": lambda **more: _encoder(
        hf.AlbertForSequenceClassification, hf.AlbertConfig, embedding_size=16, **more
    ),
    "distilbert": _distilbert,
}


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def batch(name: str) -> dict[str, Tensor]:
    """Two examples, the second padded: on the right, so that positions are those of one alone."""
    found = {"input_ids": tokens(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    found["attention_mask"][1, 5:] = 0
    if name in ("t5", "bart"):
        found["decoder_input_ids"] = tokens(2, 5, seed=1)
    return found


def cut(
    prompts: Tensor, shapes: Sequence[tuple[int, ...]], submodules: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """HF PEFT's prefix (n, layers · 2 · width) as keys and values (heads, n, width of a head) of
    each layer.

    For encoder-decoders (`submodules` = 2) it deals the layers' tensors out twice, keys and values
    of the decoder's self-attention and of its cross-attention, and drops the latter: layer i gets
    the pair 2i, counted modulo the number of layers.
    """
    n, layers = prompts.shape[0], len(shapes)
    each = prompts.view(n, layers, 2, *shapes[0]).permute(1, 2, 3, 0, 4)
    chosen = [each[submodules * i % layers] for i in range(layers)]
    return [(one[0], one[1]) for one in chosen]


@torch.no_grad()
def put_prefix(adapter: Adapter, prompts: Tensor, submodules: int = 1) -> None:
    shapes = [delta.site.geometry.shape for _, delta in adapter.deltas()]
    parts = cut(prompts, shapes, submodules)
    for (_, delta), (k, v) in zip(adapter.deltas(), parts, strict=True):
        delta.K.copy_(k)
        delta.V.copy_(v)


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits
