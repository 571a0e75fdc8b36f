"""Where an adapter would do nothing, do another thing once merged, or fail without a reason."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import perturb
from torch import Tensor, nn
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import trimtab
from trimtab.match import sites

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


def test_the_parts_of_a_fused_map_follow_the_heads() -> None:
    """Its rows are three times its columns, and yet no thirds."""
    config = Phi3Config(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=20,
        pad_token_id=0,
    )
    found = {site.name: site.rows for site in sites(Phi3ForCausalLM(config)) if site.rows}
    assert [rows for name, rows in found.items() if "qkv_proj[" in name] == [
        *((0, 128), (128, 160), (160, 192))
    ]


FUSED_OTHERWISE = {
    "c_attn": lambda: GPTBigCodeForCausalLM(
        GPTBigCodeConfig(n_embd=8, n_head=2, n_layer=1, vocab_size=9, multi_query=False)
    ),
    "qkv_proj": lambda: CodeGenForCausalLM(
        CodeGenConfig(n_embd=16, n_head=4, n_layer=1, vocab_size=9, rotary_dim=2)
    ),
}


@pytest.mark.parametrize("leaf", FUSED_OTHERWISE)
def test_a_map_fused_otherwise_has_no_parts(leaf: str) -> None:
    model = FUSED_OTHERWISE[leaf]()
    with pytest.raises(trimtab.SiteNotFound, match="not query, key, value one after the other"):
        trimtab.attach(model, trimtab.LoRA(), to=f"{leaf}[query]")
    assert trimtab.attach(model, trimtab.LoRA(), to=leaf).hosts


def test_padding_under_an_encoder_of_torch() -> None:
    """Its layers make no nested tensors while adapters are there."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1)).eval()
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    perturb(trimtab.attach(model, trimtab.LoRA(rank=2)))
    evaluated = model[0](x, src_key_padding_mask=mask)
    model.train()
    trained = model[0](x, src_key_padding_mask=mask)
    assert torch.allclose(evaluated[~mask], trained[~mask], atol=1e-6)
    trimtab.detach(model)
    assert model[0].use_nested_tensor


def test_the_time_steps_of_mamba_are_adapted() -> None:
    config = MambaConfig(
        hidden_size=8, num_hidden_layers=1, vocab_size=20, state_size=2, time_step_rank=4
    )
    model = MambaForCausalLM(config).eval()
    base = model(IDS, use_cache=False).logits
    perturb(trimtab.attach(model, trimtab.LoRA(rank=2), to="dt_proj"), by=2.0)
    before = model(IDS, use_cache=False).logits
    assert not torch.allclose(before, base)
    assert torch.allclose(trimtab.merge(model)(IDS, use_cache=False).logits, before, atol=1e-5)
    trimtab.unmerge(model)
    trimtab.detach(model)
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2))
    assert len(adapter.hosts) == 4
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in adapter.parameters())


def test_a_prefix_under_an_attention_that_it_cannot_extend() -> None:
    (model,) = llamas(1)
    base = model(IDS).logits
    prefixed(model)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(trimtab.StateError, match="the model uses 'flex_attention' now"):
        model(IDS)
    model.set_attn_implementation("eager")
    trimtab.activate(model, None)
    assert torch.allclose(model(IDS).logits, base, atol=1e-5)


OUT_OF_BOUNDS = {
    "prefix: length must be at least 1, not 0": lambda: trimtab.PrefixTuning(length=0),
    "p-tuning: encoder must be": lambda: trimtab.PTuning(encoder="gru"),
    "side: temperature must be above 0, not 0": lambda: trimtab.Side(temperature=0.0),
    "knowledge: width must be a multiple of heads=3, not 8": (
        lambda: trimtab.Knowledge(width=8, heads=3)
    ),
    "fusion: regularisation must not be negative": lambda: trimtab.Fusion(regularisation=-1.0),
    "compacter: n must be at least 1, not 0": lambda: trimtab.Compacter(n=0),
    "dora: rank must be at least 1, not 0": lambda: trimtab.DoRA(rank=0),
}


@pytest.mark.parametrize("message", OUT_OF_BOUNDS)
def test_a_bound_names_its_field_and_what_was_given(message: str) -> None:
    with pytest.raises(trimtab.InputError, match=message):
        OUT_OF_BOUNDS[message]()
