"""Tiny random models of thirteen architectures, as data: what the laws are tried on.

transformers is imported when a model is built. A new architecture is one function and one entry of
`ARCHITECTURES`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 100
INIT = 0.2  # ten times the usual spread: in a tiny model every site must matter to the output

Batch = dict[str, Any]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).logits


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


@dataclass(frozen=True)
class Architecture:
    """A tiny random model, always the same one, and one batch for it.

    `read` gives what the model computes, one tensor that depends on all of it, with one row an
    example; in a model that compares the examples with each other (`apart` is false) a row depends
    on the others too.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    read: Callable[[nn.Module, Batch], Tensor] = _logits
    loss: Callable[[nn.Module, Batch], Tensor] = _loss
    apart: bool = True

    def model(self) -> nn.Module:
        """A copy of its own."""
        return copy.deepcopy(_built(self))

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model computes, without gradients."""
        with torch.no_grad():
            return self.read(model, batch)


@functools.cache
def _built(architecture: Architecture) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.make().eval()
        with torch.no_grad():  # no bias is zero and no gain one, as in a trained model
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape))
        return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random ids, none of them special."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int) -> Tensor:
    """Random inputs such as pixels."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _text() -> Batch:
    """Two sequences, the second one padded."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens(2, 7), "attention_mask": mask}


def _classes() -> Batch:
    return {**_text(), "labels": torch.tensor([0, 2])}


def _continued() -> Batch:
    return {**_text(), "labels": tokens(2, 7)}


def _answered() -> Batch:
    return {**_text(), "labels": tokens(2, 5, seed=1)}


def _images() -> Batch:
    return {"pixel_values": numbers(2, 3, 8, 8), "labels": torch.tensor([0, 2])}


def _speech() -> Batch:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    labels = tokens(2, 5, seed=1)
    return {
        "input_features": numbers(2, 8, 16),
        "decoder_input_ids": tokens(2, 5, seed=2),
        "decoder_attention_mask": mask,
        "labels": labels.masked_fill(mask == 0, -100),
    }


def _captions() -> Batch:
    """Padded in front: what follows the end, where a caption is read, is never looked at."""
    ids, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    ids[:, 6], mask[1, :2] = CLIP_END, 0
    text = {"input_ids": ids, "attention_mask": mask}
    return {**text, "pixel_values": numbers(2, 3, 8, 8), "return_loss": True}


BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": INIT,
    "num_labels": 3,
}
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": INIT,
}
BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "dropout": 0.0,
    "init_std": INIT,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 16,
}
CLIP_END = VOCAB - 1


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**BERT))


def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**BERT))


def albert() -> nn.Module:
    """One layer, run twice."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    return AlbertForSequenceClassification(
        AlbertConfig(**BERT, embedding_size=16, classifier_dropout_prob=0.0)
    )


def xlnet() -> nn.Module:
    """Attention that reads its maps as parameters, (width, heads, width of a head) each."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    return XLNetForSequenceClassification(
        XLNetConfig(
            vocab_size=VOCAB,
            d_model=32,
            n_layer=2,
            n_head=4,
            d_inner=64,
            dropout=0.0,
            summary_last_dropout=0.0,
            initializer_range=INIT,
            num_labels=3,
        )
    )


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=VOCAB,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=40,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            initializer_range=INIT,
            num_labels=3,
        )
    )


def gpt2() -> nn.Module:
    """Query, key and value as one map, stored (in, out); the head tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=40,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=INIT,
        )
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def qwen3() -> nn.Module:
    """Norms of queries and keys, and a head that is tied to the embedding."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(BartConfig(**BART, max_position_embeddings=40))


def vit() -> nn.Module:
    """Patches of an image, cut out by a convolution."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {key: value for key, value in TOWER.items() if key != "projection_dim"}
    return ViTForImageClassification(
        ViTConfig(
            **sizes,
            image_size=8,
            patch_size=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=INIT,
            num_labels=3,
        )
    )


def whisper() -> nn.Module:
    """Two convolutions over a spectrum, an encoder of it and a decoder of text."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            **BART,
            num_mel_bins=8,
            max_source_positions=8,
            max_target_positions=40,
            apply_spec_augment=False,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )


def clip() -> nn.Module:
    """Two towers, compared with each other."""
    from transformers import CLIPConfig, CLIPModel

    text = {**TOWER, "vocab_size": VOCAB, "max_position_embeddings": 40, "initializer_factor": 3.0}
    ends = {"bos_token_id": 0, "eos_token_id": CLIP_END, "pad_token_id": 1}
    image = {**TOWER, "image_size": 8, "patch_size": 4, "initializer_factor": 3.0}
    return CLIPModel(
        CLIPConfig(text_config={**text, **ends}, vision_config=image, projection_dim=16)
    )


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("bert", bert, _classes),
    Architecture("gpt2", gpt2, _continued),
    Architecture("t5", t5, _answered),
    Architecture("llama", llama, _continued),
    Architecture("vit", vit, _images),
    Architecture("albert", albert, _classes),
    Architecture("bart", bart, _answered),
    Architecture("xlnet", xlnet, _classes),
    Architecture("qwen3", qwen3, _continued),
    Architecture("whisper", whisper, _speech),
    Architecture("roberta", roberta, _classes),
    Architecture(
        "clip", clip, _captions, lambda model, batch: model(**batch).logits_per_image, apart=False
    ),
    Architecture("distilbert", distilbert, _classes),
)
