"""A configuration of HF PEFT in memory: the same sites and methods that HF PEFT itself chooses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cases
import more_models
import peft
import pytest
from peft import IA3Config, LoHaConfig, LoraConfig
from peft.utils import constants
from test_store_hf import CONFIGURATIONS, pytestmark  # noqa: F401
from torch import nn

import trimtab
from trimtab.core.method import Method
from trimtab.match import sites
from trimtab.store import hf
from trimtab.store.hf import defaults

BY_DEFAULT: dict[str, tuple[str, Any]] = {
    "bert": ("bert", LoraConfig(task_type="SEQ_CLS")),
    "bert loha": ("bert", LoHaConfig()),
    "bert ia3": ("bert", IA3Config(task_type="SEQ_CLS")),
    "gpt2": ("gpt2", LoraConfig(fan_in_fan_out=True)),
    "t5 ia3": ("t5", IA3Config(task_type="SEQ_2_SEQ_LM")),
    "llama": ("llama", LoraConfig(task_type="CAUSAL_LM", exclude_modules=["v_proj"])),
    "bart": ("bart", LoraConfig()),
    "token classes": ("bert", LoraConfig(task_type="TOKEN_CLS", target_modules=["key"])),
}
EVERY = {**CONFIGURATIONS, **{f"by default {name}": one for name, one in BY_DEFAULT.items()}}


def named(pairs: list[tuple[Any, Method]]) -> list[tuple[str, Method]]:
    return [(site.name, method) for site, method in pairs]


@pytest.mark.parametrize(("architecture", "config"), EVERY.values(), ids=list(EVERY))
def test_the_sites_that_hf_peft_chooses(
    architecture: str, config: Any, peft_writes: Callable[[cases.Architecture, Any], Any]
) -> None:
    one = more_models.by_name(architecture)
    model = one.model()
    planned = hf.plan(copy.deepcopy(config), model)
    theirs = peft_writes(one, copy.deepcopy(config))
    known = {path: site for site in sites(model) for path in site.paths}
    pairs, _ = hf.interpret(*hf.read(theirs.folder), model, known, "default")
    assert sorted(named(planned), key=str) == sorted(named(pairs), key=str)
    order = [site.name for site in sites(model)]
    assert [site for site, _ in named(planned)] == sorted(
        (site for site, _ in named(planned)), key=order.index
    )


def test_a_configuration_as_plain_fields() -> None:
    model = cases.by_name("bert").model()
    fields = {"peft_type": "LORA", "target_modules": ["query"], "r": 3}
    methods = {method for _, method in hf.plan(fields, model)}
    assert methods == {trimtab.LoRA(rank=3)}


REFUSED: dict[str, tuple[Any, str]] = {
    "start": (
        LoraConfig(target_modules=["query"], init_lora_weights="gaussian"),
        "init_lora_weights='gaussian': a new adapter starts as lora starts",
    ),
    "no start": (
        LoraConfig(target_modules=["query"], init_lora_weights=False),
        "init_lora_weights=False: a new adapter starts",
    ),
    "nowhere": (
        LoraConfig(target_modules=["qery"]),
        r"no module of .* matches target_modules=\['qery'\]",
    ),
    "whole nowhere": (
        LoraConfig(target_modules=["query"], modules_to_save=["clasifier"]),
        "no module with parameters is 'clasifier'",
    ),
    "a norm": (LoraConfig(target_modules=["LayerNorm"]), "lora cannot act at 'bert.embeddings"),
    "tying": (
        LoraConfig(target_modules=["query"], ensure_weight_tying=True),
        "ensure_weight_tying",
    ),
    "megatron": (
        LoraConfig(target_modules=["query"], megatron_config={"a": 1}),
        "megatron_config",
    ),
    "another type": ({"peft_type": "X", "target_modules": ["query"]}, "peft_type 'X' cannot be"),
}


@pytest.mark.parametrize(("config", "match"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_refused_by_name(config: Any, match: str) -> None:
    model = cases.by_name("bert").model()
    with pytest.raises(trimtab.InputError, match=match):
        hf.plan(config, model)


def test_no_targets_for_a_model_that_nobody_knows() -> None:
    with pytest.raises(trimtab.InputError, match=r"target_modules is left out.*type 'None'"):
        hf.plan(LoraConfig(), nn.Sequential(nn.Linear(2, 2)))


KINDS = (
    *("LORA", "LOHA", "IA3", "VERA", "OFT", "ADALORA", "FOURIERFT", "C3A", "MISS", "SHIRA"),
    *("LOKR", "HIRA", "RANDLORA", "VBLORA", "UNILORA", "DELORA", "GRALORA", "BOFT", "HRA", "ROAD"),
)


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        *((kind, kind) for kind in KINDS),
        ("LN_TUNING", "LNTUNING"),
    ],
)
def test_the_table_of_targets_is_theirs(kind: str, table: str) -> None:
    theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{table}_TARGET_MODULES_MAPPING")
    assert {model: defaults.targets(kind, model) for model in theirs} == theirs


def test_the_table_of_feed_forward_modules_is_theirs() -> None:
    theirs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    assert {model: defaults.feedforward(model) for model in theirs} == theirs


NEW: dict[str, tuple[str, Any]] = {
    "vera": ("bert", peft.VeraConfig(r=4)),
    "dora": ("bert", LoraConfig(r=4, use_dora=True, target_modules=["query", "dense"])),
    "adalora": ("bert", peft.AdaLoraConfig(total_step=5)),
    "oft": ("bert", peft.OFTConfig(oft_block_size=8)),
    "lokr": ("bert", peft.LoKrConfig(decompose_both=True, r=1)),
    "hira": ("gpt2", peft.HiraConfig(r=4, fan_in_fan_out=True)),
    "randlora": ("llama", peft.RandLoraConfig(r=4)),
    "vb-lora": ("t5", peft.VBLoRAConfig(vector_length=16)),
    "shared": ("bert", peft.UniLoraConfig(bias="unilora_only")),
    "delora": ("llama", peft.DeloraConfig()),
    "gralora": ("gpt2", peft.GraloraConfig(r=4, hybrid_r=2, fan_in_fan_out=True)),
    "biases of vera": ("bert", peft.VeraConfig(r=4, bias="vera_only")),
    "boft": ("bert", peft.BOFTConfig()),
    "hra": ("bert", peft.HRAConfig(r=4)),
    "road": ("bert", peft.RoadConfig(variant="road_2", group_size=8)),
    "ln": ("gpt2", peft.LNTuningConfig()),
    "tokens": ("llama", peft.TrainableTokensConfig(token_indices=[3, 5])),
    "tied tokens": ("gpt2", peft.TrainableTokensConfig(token_indices=[3, 5])),
    "tokens beside lora": ("llama", LoraConfig(trainable_token_indices=[3, 5])),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.filterwarnings(
    "ignore:(Failed to load|.*the CUDA extension|Setting boft_n):UserWarning"
)
@pytest.mark.parametrize(("name", "config"), NEW.values(), ids=list(NEW))
def test_every_type_trains_what_it_trains_there(name: str, config: Any) -> None:
    architecture = cases.by_name(name)
    theirs = peft.get_peft_model(architecture.model(), copy.deepcopy(config))
    ours = architecture.model()
    adapter = trimtab.attach(ours, config)
    there = sorted(tuple(p.squeeze().shape) for p in theirs.parameters() if p.requires_grad)
    here = sorted(tuple(p.squeeze().shape) for p in adapter.parameters())
    assert here == there
