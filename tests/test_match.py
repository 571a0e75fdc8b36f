"""Targets to sites: roles on nine architectures; globs, expressions, names, lists; errors."""

from __future__ import annotations

import re
from typing import Any

import cases
import pytest
import torch
import transformers as hf
from torch import nn

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.heads import heads
from trimtab.match import ROLES, match, sites

SMALL = {"vocab_size": cases.VOCAB, "max_position_embeddings": 32}
BART = hf.BartConfig(
    **SMALL, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_labels=3,
)  # fmt: skip
VIT = hf.ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    image_size=8, patch_size=4,
)  # fmt: skip

MODELS: dict[str, Any] = {
    **{one.name: one.make for one in cases.ARCHITECTURES},
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**cases.BERT)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(**SMALL, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    ),
    "albert": lambda: hf.AlbertForSequenceClassification(
        hf.AlbertConfig(**cases.BERT, embedding_size=16)
    ),
    "vit": lambda: hf.ViTForImageClassification(VIT),
    "bart": lambda: hf.BartForSequenceClassification(BART),
}

# How many sites each role has, and the names at their ends: written from the models' definitions.
EXPECTED: dict[str, dict[str, tuple[int, set[str]]]] = {
    "bert": {
        "attention": (8, {"query", "key", "value", "dense"}),
        "query": (2, {"query"}),
        "key": (2, {"key"}),
        "value": (2, {"value"}),
        "mlp": (4, {"dense"}),
        "down": (2, {"dense"}),
        "all-linear": (13, {"query", "key", "value", "dense"}),
        "head": (1, {"classifier"}),
        "biases": (18, {"query", "key", "value", "dense", "LayerNorm"}),
    },
    "gpt2": {
        "attention": (4, {"c_attn", "c_proj"}),
        "query": (2, {"c_attn"}),
        "key": (2, {"c_attn"}),
        "value": (2, {"c_attn"}),
        "mlp": (4, {"c_fc", "c_proj"}),
        "down": (2, {"c_proj"}),
        "all-linear": (8, {"c_attn", "c_proj", "c_fc"}),
        "head": (1, {"lm_head"}),
        "biases": (13, {"c_attn", "c_proj", "c_fc", "ln_1", "ln_2", "ln_f"}),
    },
    "llama": {
        "attention": (8, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        "query": (2, {"q_proj"}),
        "key": (2, {"k_proj"}),
        "value": (2, {"v_proj"}),
        "mlp": (6, {"gate_proj", "up_proj", "down_proj"}),
        "down": (2, {"down_proj"}),
        "all-linear": (14, {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}),
        "head": (1, {"lm_head"}),
    },
    "t5": {
        "attention": (24, {"q", "k", "v", "o"}),
        "query": (6, {"q"}),
        "key": (6, {"k"}),
        "value": (6, {"v"}),
        "mlp": (8, {"wi", "wo"}),
        "down": (4, {"wo"}),
        "all-linear": (32, {"q", "k", "v", "o", "wi", "wo"}),
        "head": (1, {"lm_head"}),
    },
    "roberta": {
        "attention": (8, {"query", "key", "value", "dense"}),
        "mlp": (4, {"dense"}),
        "down": (2, {"dense"}),
        "all-linear": (12, {"query", "key", "value", "dense"}),
        "head": (2, {"dense", "out_proj"}),
    },
    "distilbert": {
        "attention": (8, {"q_lin", "k_lin", "v_lin", "out_lin"}),
        "value": (2, {"v_lin"}),
        "mlp": (4, {"lin1", "lin2"}),
        "down": (2, {"lin2"}),
        "head": (2, {"pre_classifier", "classifier"}),
    },
    "albert": {  # one layer's weights for all layers
        "attention": (4, {"query", "key", "value", "dense"}),
        "mlp": (2, {"ffn", "ffn_output"}),
        "down": (1, {"ffn_output"}),
        "all-linear": (8, {"query", "key", "value", "dense", "ffn", "ffn_output", "pooler",
                           "embedding_hidden_mapping_in"}),
        "head": (1, {"classifier"}),
    },
    "vit": {
        "attention": (8, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        "mlp": (4, {"fc1", "fc2"}),
        "down": (2, {"fc2"}),
        "head": (1, {"classifier"}),
    },
    "bart": {
        "attention": (24, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        "value": (6, {"v_proj"}),
        "mlp": (8, {"fc1", "fc2"}),
        "down": (4, {"fc2"}),
        "head": (2, {"dense", "out_proj"}),
    },
}  # fmt: skip


def model(name: str) -> Any:
    return next((a.model() for a in cases.ARCHITECTURES if a.name == name), None) or MODELS[name]()


def found(name: str, target: Any, method: Any = None) -> list[str]:
    return [site.name for site in match(model(name), target, method or trimtab.LoRA())]


@pytest.mark.parametrize(
    ("name", "role"), [(name, role) for name, roles in EXPECTED.items() for role in roles]
)
def test_roles(name: str, role: str) -> None:
    names = found(name, role, trimtab.BitFit() if role == "biases" else trimtab.LoRA())
    leaves = {site.rpartition(".")[2] for site in names}
    assert (len(names), leaves) == EXPECTED[name][role]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MODELS)
def test_roles_partition_a_model(name: str) -> None:
    """All linear maps are the head's or `all-linear`; attention and feed-forward do not overlap."""
    known = [site for site in sites(model(name)) if site.geometry.kind == "linear"]
    assert known
    for site in known:
        if site.rows is not None:
            assert not site.roles, "parts are chosen by name alone"
            continue
        assert ("head" in site.roles) != ("all-linear" in site.roles)
        assert not {"attention", "mlp"} <= site.roles
        assert site.roles <= set(ROLES)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "bart"])
def test_sites_stay_the_same_once_hosted(name: str) -> None:
    one = model(name)
    before = sites(one)
    trimtab.attach(one, trimtab.LoRA(), train=[heads(one)[0]])
    assert sites(one) == before


def test_tied_modules_are_one_site() -> None:
    """A layer that hangs at two places has one delta, and answers to either name."""
    shared = nn.Linear(4, 4)
    tied = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    assert [site.name for site in match(tied, "c", trimtab.LoRA())] == ["a"]
    adapter = trimtab.attach(tied, trimtab.LoRA(rank=2), "b.c")
    assert tied["a"] is tied["b"]["c"] is adapter.hosts["a"]
    trimtab.detach(tied)
    assert tied["a"] is tied["b"]["c"] is shared


LAYER = "model.layers.{}.self_attn.q_proj"
QUERIES = [LAYER.format(0), LAYER.format(1)]
TARGETS: list[tuple[Any, list[str]]] = [
    ("q_proj", QUERIES),
    ("self_attn.q_proj", QUERIES),
    (QUERIES[0], QUERIES[:1]),
    ("*.layers.1.*.q_proj", QUERIES[1:]),
    ("*.layers.[0-1].self_attn.q*", QUERIES),
    ("layers.?.self_attn.q_proj", QUERIES),
    (r"re:.*\.q_proj", QUERIES),
    (r"re:model\.layers\.(0|7)\..*q_proj", QUERIES[:1]),
    (re.compile(r".*1\.self_attn\.q_proj"), QUERIES[1:]),
    (["q_proj"], QUERIES),
    ([QUERIES[1], re.compile(re.escape(QUERIES[0]))], QUERIES),
    (["query", "q_proj"], QUERIES),
    ((QUERIES[1], "lm_head"), [QUERIES[1], "lm_head"]),
]


@pytest.mark.parametrize(("target", "expected"), TARGETS, ids=[str(t) for t, _ in TARGETS])
def test_targets(target: Any, expected: list[str]) -> None:
    """In the model's order whatever the order of the list."""
    assert found("llama", target) == expected


ERRORS: list[tuple[str, Any, str]] = [
    ("llama", "q_prj", "no site matches 'q_prj'; nearest: 'q_proj' (2 sites)"),
    ("llama", "lm_haed", "nearest: 'lm_head' (1 site)"),
    ("llama", "self_attn.q_prj", "nearest: 'q_proj' (2 sites)"),
    ("llama", r".*layers\.[0-1]\..*q_proj", "as a regular expression some do: 're:.*layers"),
    ("llama", "atention", "nearest: 'attention'"),
    ("llama", ["q_proj", "nowhere"], "no site matches 'nowhere'"),
    ("llama", "proj", "no site matches 'proj'"),
    ("llama", r"re:q_proj", "no site matches 're:q_proj'"),
    ("llama", re.compile("q_proj"), "no site matches 'q_proj'"),
    ("llama", "*.layers.9.*", "no site matches '*.layers.9.*'"),
    (
        "llama",
        "norm",
        "lora cannot act at 'model.norm' (LlamaRMSNorm), which 'norm' names: it acts on",
    ),
    ("bert", "embeddings", "(BertEmbeddings), which 'embeddings' names: it acts on conv or"),
]


@pytest.mark.parametrize(("name", "target", "text"), ERRORS, ids=[text for *_, text in ERRORS])
def test_errors_name_what_is_near(name: str, target: Any, text: str) -> None:
    with pytest.raises(trimtab.SiteNotFound, match=re.escape(text)):
        found(name, target)


def test_errors_of_roles_and_expressions() -> None:
    with pytest.raises(trimtab.SiteNotFound, match="no site has the role 'attention'"):
        match(nn.Sequential(nn.Linear(2, 2)), "attention", trimtab.LoRA())
    with pytest.raises(trimtab.InputError, match=r"'re:\(' is no regular expression"):
        found("llama", "re:(")


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "bert": ["classifier"],
        "gpt2": ["lm_head"],
        "llama": ["lm_head"],
        "t5": ["lm_head"],
        "roberta": ["classifier"],
        "distilbert": ["pre_classifier", "classifier"],
        "albert": ["classifier"],
        "vit": ["classifier"],
        "bart": ["classification_head"],
    }.items(),
)
def test_heads(name: str, expected: list[str]) -> None:
    assert heads(model(name)) == expected


def test_the_head_of_a_plain_module_is_its_last_linear_map() -> None:
    assert heads(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))) == ["2"]
    assert heads(nn.Sequential(nn.ReLU())) == []


def test_a_network_of_convolutions() -> None:
    """Its error says which role fits; LoRA trains there and leaves the start as it was."""
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    one = hf.ResNetForImageClassification(config).eval()
    names = [n for n, m in one.named_modules() if isinstance(m, nn.Conv2d)]
    assert [site.name for site in match(one, "convolutions", trimtab.LoRA())] == names
    with pytest.raises(InputError, match=r"all-linear.*take 'convolutions'"):
        match(one, "all-linear", trimtab.LoRA())
    pixels = torch.randn(2, 3, 32, 32)
    before = one(pixel_values=pixels).logits
    trimtab.attach(one, trimtab.LoRA(rank=2), to="convolutions")
    torch.testing.assert_close(one(pixel_values=pixels).logits, before)
