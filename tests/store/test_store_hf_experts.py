"""LoRA on tensors that HF PEFT names by `target_parameters`, there and back: experts held in one
tensor, and matrices that modules read themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from both_ways import Writes, by_peft, loaded, there_and_back
from of_experts import CLOSE, DOWN, IGNORED, ONES, UP, config
from peft import LoraConfig
from peft.utils import transformers_weight_conversion as theirs_moe
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import trimtab
from trimtab.match import sites
from trimtab.store import hf
from trimtab.store.hf import experts

pytestmark = IGNORED

BOTH: dict[str, tuple[str, LoraConfig]] = {
    "mixtral, one": ("mixtral", config([DOWN])),
    "mixtral, the other": ("mixtral", config(["gate_up_proj"])),
    "mixtral, both": ("mixtral", config([DOWN, UP])),
    "mixtral, attention too": ("mixtral", config([UP, DOWN], ["q_proj", "o_proj"])),
    "mixtral, of one block": ("mixtral", config([f"layers.1.mlp.{UP}"], use_rslora=True)),
    "mixtral, head too": ("mixtral", config([UP], modules_to_save=["lm_head"])),
    "mixtral, ranks": (
        "mixtral",
        config([UP, DOWN], ["v_proj"], rank_pattern={UP: 3}, alpha_pattern={"1.*down_proj": 5}),
    ),
    "mixtral, former names": (
        "mixtral",
        LoraConfig(r=2, target_modules=["w1", "w2", "w3", "q_proj"]),
    ),
    "mixtral, every map": ("mixtral", config([], "all-linear")),
    "mixtral, what routes": ("mixtral", config(["gate.weight"], ["q_proj"])),
    "qwen, every map": ("qwen", config([], "all-linear")),
    "oss, what routes": ("oss", config(["router.weight"])),
    "qwen": ("qwen", config([UP, DOWN], ["k_proj"])),
    "qwen, former names": (
        "qwen",
        LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj", "v_proj"]),
    ),
    "qwen, former names in a pattern": (
        "qwen",
        LoraConfig(r=2, target_modules=r".*layers\.0.*(gate_proj|up_proj|v_proj)"),
    ),
    "qwen, a dense block": ("qwen", config(["1.mlp.up_proj.weight"], bias="lora_only")),
    "oss": ("oss", config([UP, DOWN])),
    "oss, attention too": ("oss", config([DOWN], ["q_proj"])),
    "oss, former default": ("oss", LoraConfig(r=4, target_parameters=[UP])),
    "llama4": ("llama4", config([UP, DOWN], ["q_proj"])),
    "attention's own tensor": ("attends", config(["attention.in_proj_weight"], ["score"])),
    "biases of the targets": (
        "attends",
        config(["attention.in_proj_weight"], ["score"], bias="lora_only"),
    ),
    "an embedding, a map": ("attends", config(["embed.weight", "score.weight"])),
    "transposed": ("gpt2", config(["c_attn.weight", "wte.weight"])),
}
"""What HF PEFT writes, and reads of what is written here."""


LORA, SMALL = trimtab.LoRA(rank=4), trimtab.LoRA(rank=2, alpha=3.0)
OTHERWISE = {"an embedding, a map", "transposed"}
"""Modules that are called: what is read is LoRA upon them, and is written as that."""


@pytest.mark.parametrize("case", BOTH)
def test_there_and_back(case: str, peft_writes: Writes, tmp_path: Path) -> None:
    name, chosen = copy.deepcopy(BOTH[case])
    one = ONES[name]
    if case not in OTHERWISE:
        there_and_back(one, chosen, peft_writes, tmp_path)
        return
    theirs = peft_writes(one, chosen)
    model = loaded(theirs.folder, one)
    cases.assert_differs(theirs.logits, cases.logits(one.model(), one.batch()))
    torch.testing.assert_close(cases.logits(model, one.batch()), theirs.logits, **CLOSE)
    there = by_peft(trimtab.save(model, tmp_path / "ours", format="peft"), one)
    torch.testing.assert_close(cases.logits(there, one.batch()), theirs.logits, **CLOSE)


@pytest.mark.parametrize("case", BOTH)
def test_the_sites_that_hf_peft_chooses(case: str, peft_writes: Writes) -> None:
    name, chosen = BOTH[case]
    model = ONES[name].model()
    planned = hf.plan(copy.deepcopy(chosen), model)
    theirs = peft_writes(ONES[name], copy.deepcopy(chosen))
    known = {path: site for site in sites(model) for path in site.paths}
    pairs, _ = hf.interpret(*hf.read(theirs.folder), model, known, "default")
    assert [(site.name, method) for site, method in planned] == [
        (site.name, method) for site, method in pairs
    ]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("mixtral", {"*experts*": LORA}),
        ("mixtral", {"*.0.*down_proj": LORA, "*.1.*experts*": LORA, "v_proj": SMALL}),
        ("qwen", {"1.mlp.gate_proj": SMALL, "1.mlp.down_proj": LORA, "q_proj": LORA}),
        ("qwen", {"1.mlp.up_proj": LORA, "gate_up_proj": SMALL, "*.experts.down_proj": LORA}),
        ("oss", {"all-linear": LORA}),
        ("attends", {"in_proj_weight": LORA, "score": SMALL}),
    ],
)
def test_what_is_attached_here_is_read_there(name: str, plan: Any, tmp_path: Path) -> None:
    one = ONES[name]
    model = one.model()
    adapter = trimtab.attach(model, plan)
    cases.perturb(adapter)
    ours = cases.logits(model, one.batch())
    cases.assert_differs(ours, cases.logits(one.model(), one.batch()))
    folder = trimtab.save(model, tmp_path / "ours", format="peft")
    torch.testing.assert_close(cases.logits(by_peft(folder, one), one.batch()), ours, **CLOSE)
    again = loaded(folder, one)
    torch.testing.assert_close(cases.logits(again, one.batch()), ours, rtol=1e-6, atol=1e-6)


def test_the_types_whose_names_hf_peft_reads_as_tensors() -> None:
    known = theirs_moe._MOE_TARGET_MODULE_MAPPING
    patterns = theirs_moe._MODEL_TO_CONVERSION_PATTERN
    theirs = {
        kind: known[pattern]
        for kind, pattern in patterns.items()
        if pattern in known and get_checkpoint_conversion_mapping(kind) is not None
    }
    ours = {kind: table for kind, table in experts.FORMER.items() if kind in patterns}
    assert ours == {kind: table for kind, table in theirs.items() if kind in experts.FORMER}
    unnamed = theirs.keys() - experts.FORMER.keys()
    assert all(not kind.islower() for kind in unnamed)  # names of classes, no types of models
    fused = theirs_moe._MOE_FUSED_TARGETS
    for kind, table in ours.items():
        several = {new for new in table.values() if list(table.values()).count(new) > 1}
        assert several == {new for new, old in fused[patterns[kind]].items() if len(old) > 1}


@pytest.mark.parametrize("name", ["mixtral", "qwen", "oss", "llama4"])
def test_what_routes_is_a_target_of_its_own(name: str) -> None:
    """It gives no output of a map, so that "all-linear" leaves it out."""
    model, batch = ONES[name].model().eval(), ONES[name].batch()
    before = cases.logits(model, batch)
    every = trimtab.attach(model, SMALL, name="every")
    assert not any(".gate.weight" in site or ".router" in site for site, _ in every.entries)
    adapter = trimtab.attach(model, SMALL, "router", name="routers")
    assert all(site.endswith((".gate.weight", ".router.weight")) for site, _ in adapter.entries)
    torch.testing.assert_close(cases.logits(model, batch), before)
    cases.perturb(adapter)
    found = cases.logits(model, batch)
    cases.assert_differs(before, found)
    trimtab.merge(model)
    torch.testing.assert_close(cases.logits(model, batch), found, **CLOSE)


def test_no_blocks_of_experts_rotations_are_left_out() -> None:
    with pytest.raises(trimtab.InputError, match="oft: no dropout can act"):
        trimtab.attach(ONES["mixtral"].model(), trimtab.OFT(block=4, dropout=0.5), UP)
