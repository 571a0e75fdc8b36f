"""Where an adapter would do nothing, do another thing once merged, or fail without a reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab
from tests.cases import perturb

IDS = torch.tensor([[3, 5, 7, 9], [4, 6, 8, 10]])


def llamas(count: int) -> list[LlamaForCausalLM]:
    """Models of one configuration."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=20,
    )
    return [LlamaForCausalLM(config).eval() for _ in range(count)]


def prefixed(model: LlamaForCausalLM) -> Tensor:
    perturb(trimtab.attach(model, trimtab.PrefixTuning(length=3)))
    return model(IDS).logits.detach()


@pytest.mark.parametrize("direct", [False, True], ids=["the model", "its stack"])
def test_a_prefix_survives_another_attention_function(direct: bool) -> None:
    (model,) = llamas(1)
    run = (lambda: model.model(IDS)[0]) if direct else (lambda: model(IDS).logits)
    base = run()
    prefixed(model)
    before = run()
    assert not torch.allclose(before, base)
    model.set_attn_implementation("eager")
    assert torch.allclose(run(), before, atol=1e-5)
    assert torch.allclose(copy.deepcopy(model)(IDS).logits, model(IDS).logits)
    trimtab.detach(model)
    assert model.config._attn_implementation == "eager"
    assert torch.allclose(run(), base, atol=1e-5)
    assert not model._forward_pre_hooks


def test_a_prefix_survives_what_another_model_of_its_configuration_does() -> None:
    one, other = llamas(2)
    base, before = other(IDS).logits, prefixed(one)
    assert torch.allclose(other(IDS).logits, base, atol=1e-5)
    prefixed(other)
    trimtab.detach(other)
    assert torch.allclose(one(IDS).logits, before, atol=1e-5)
    assert torch.allclose(other(IDS).logits, base, atol=1e-5)
    trimtab.attach(other, trimtab.LoRA())
    assert torch.allclose(one(IDS).logits, before, atol=1e-5)
