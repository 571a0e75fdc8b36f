"""Where an adapter would do nothing, do another thing once merged, or fail without a reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
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


class Standardised(nn.Conv2d):
    """A convolution with its weight standardised, as in BiT."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, weight, self.bias)


class Doubled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class MyScaledWordEmbedding(nn.Embedding):
    embed_scale = 3.0

    def forward(self, input: Tensor) -> Tensor:
        return self.embed_scale * super().forward(input)


PECULIAR = {
    "conv": (lambda: Standardised(3, 4, 1), "a forward of its own"),
    "embedding": (lambda: Doubled(9, 4), "a forward of its own"),
    "max_norm": (lambda: nn.Embedding(9, 4, max_norm=1.0), "max_norm rewrites the rows"),
    "lazy": (lambda: nn.LazyLinear(4), "run the model once first"),
}


@pytest.mark.parametrize("name", PECULIAR)
def test_what_does_more_than_apply_its_weight_is_refused(name: str) -> None:
    make, reason = PECULIAR[name]
    with pytest.raises(trimtab.SiteNotFound, match=reason):
        trimtab.attach(nn.Sequential(make()), trimtab.LoRA(), to="0")


def test_a_scaled_embedding_merges() -> None:
    model = nn.Sequential(MyScaledWordEmbedding(9, 4))
    perturb(trimtab.attach(model, trimtab.LoRA(rank=2), to="0"))
    before = model(IDS[0] // 2)
    assert torch.allclose(trimtab.merge(model)(IDS[0] // 2), before, atol=1e-6)


def test_a_convolution_refuses_what_it_does_not_take() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1))
    trimtab.attach(model, trimtab.LoRA(rank=2), to="0")
    with pytest.raises(TypeError, match="scale"):
        model[0](torch.randn(2, 3, 5), scale=5.0)


class Coded(nn.Module):
    """A quantised linear map."""

    in_features, out_features = 4, 4

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        codes = torch.randint(-9, 9, (4, 4)).to(dtype)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 0.01 * self.weight.to(x), self.bias)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_nothing_is_merged_into_codes(dtype: torch.dtype) -> None:
    model = nn.Sequential(Coded(dtype))
    perturb(trimtab.attach(model, trimtab.LoRA(rank=2), to="0"), by=1e-4)
    with pytest.raises(trimtab.InputError, match="holds codes"):
        trimtab.merge(model)
    trimtab.detach(model)
    x = torch.randn(2, 4)
    perturb(trimtab.attach(model, trimtab.BitFit(), to="0"))
    before = model(x)
    assert torch.equal(trimtab.merge(model)(x), before)


NORMED = {
    "parametrization": nn.utils.parametrizations.weight_norm,
    "hooks": lambda module: nn.utils.weight_norm(module),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("normed", NORMED)
@pytest.mark.parametrize(
    "method", [trimtab.LoRA(rank=2), trimtab.DoRA(rank=2)], ids=["lora", "dora"]
)
def test_a_computed_weight_is_adapted_and_not_merged(normed: str, method: trimtab.Method) -> None:
    model, x = nn.Sequential(NORMED[normed](nn.Linear(4, 4))), torch.randn(2, 4)
    base = model(x)
    adapter = trimtab.attach(model, method, to="0")
    assert torch.allclose(model(x), base, atol=1e-6)
    perturb(adapter)
    before = model(x)
    assert not torch.allclose(before, base)
    with pytest.raises(trimtab.StateError, match="is computed from other tensors"):
        trimtab.merge(model)
    assert torch.equal(model(x), before)
    trimtab.detach(model)
    assert torch.equal(model(x), base)
