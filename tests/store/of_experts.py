"""Tiny models whose modules read tensors of their own: experts in one, torch's attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
import transformers as hf_models
from peft import LoraConfig
from torch import Tensor, nn

IGNORED = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not:RuntimeWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": cases.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}


def mixtral(count: int = 3) -> nn.Module:
    config = hf_models.MixtralConfig(**SIZES, num_local_experts=count)
    return hf_models.MixtralForCausalLM(config)


def qwen() -> nn.Module:
    """The second block has no experts."""
    more = {"num_experts": 3, "moe_intermediate_size": 12, "head_dim": 8, "mlp_only_layers": [1]}
    return hf_models.Qwen3MoeForCausalLM(hf_models.Qwen3MoeConfig(**SIZES, **more))


def oss() -> nn.Module:
    """Its experts are stored as (in, out)."""
    config = hf_models.GptOssConfig(**SIZES, num_local_experts=3, head_dim=8)
    return hf_models.GptOssForCausalLM(config)


def llama4() -> nn.Module:
    """Its experts are stored as (in, out), which they do not say."""
    sizes = {**SIZES, "num_local_experts": 3, "intermediate_size_mlp": 24, "head_dim": 8}
    config = hf_models.Llama4TextConfig(**sizes, pad_token_id=0, interleave_moe_layer_step=1)
    return hf_models.Llama4ForCausalLM(config)


class Output(dict[str, Tensor]):
    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Attends(nn.Module):
    """An embedding, torch's attention called as a module, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(cases.VOCAB, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.score = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> Output:
        x = self.embed(input_ids)
        return Output(logits=self.score(self.attention(x, x, x, need_weights=False)[0]))


def _batch() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(3, 15).reshape(2, 6)}


def _seeded(build: Callable[[], nn.Module]) -> cases.Architecture:
    return cases.Architecture(build.__name__.lower(), build, _batch)


ONES = {one.name: one for one in map(_seeded, (mixtral, qwen, oss, llama4, Attends))}
ONES["gpt2"] = cases.by_name("gpt2")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
UP, DOWN = "experts.gate_up_proj", "experts.down_proj"


def config(parameters: list[str], modules: Any = (), **more: Any) -> LoraConfig:
    modules = list(modules) if isinstance(modules, tuple) else modules
    return LoraConfig(r=4, target_modules=modules, target_parameters=parameters, **more)
