"""What `target_parameters` cannot mean here, or a file not hold: refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import more_models
import pytest
import torch
import transformers as hf_models
from both_ways import Writes
from of_experts import DOWN, IGNORED, ONES, UP, config, mixtral
from peft import AdaLoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import carries
from trimtab.store import hf

pytestmark = IGNORED

NOT_PLANNED: dict[str, tuple[str, Any, str]] = {
    "dropout": ("mixtral", config([UP], lora_dropout=0.1), "lora_dropout=0.1 cannot stand beside"),
    "stored otherwise": ("oss", config([UP], fan_in_fan_out=True), "fan_in_fan_out=True cannot"),
    "a bias of the update": ("attends", config(["score.weight"], lora_bias=True), "lora_bias=True"),
    "biases": ("oss", config([UP], bias="all"), r"bias='all' would train \['gate_up_proj_bias'"),
    "nowhere": ("mixtral", config(["experts.w1"]), r"no module .* has such .*'gate_up_proj', "),
    "half of what is one": (
        "mixtral",
        config([], ["w1"]),
        r"\['w1'\] without \['w3'\]: ",
    ),
    "a norm": ("mixtral", config(["norm.weight"]), r"norm\.weight': it is no matrix"),
    "an expert's bias": (
        "oss",
        config(["gate_up_proj_bias"]),
        "gate_up_proj_bias': it is no matrix",
    ),
    "never called": (
        "attends",
        config(["attention.out_proj.weight"]),
        "the module that holds it is never called",
    ),
    "twice": ("attends", config(["score.weight"], ["score"]), "and target_modules its module"),
    "saved whole": (
        "attends",
        config(["score.weight"], modules_to_save=["score"]),
        "modules_to_save trains its module whole",
    ),
    "dora": ("mixtral", config([UP], use_dora=True), "plain LoRA alone, and not with dora"),
    "adalora": (
        "mixtral",
        AdaLoraConfig(target_modules=["q_proj"], target_parameters=[UP], total_step=9),
        "plain LoRA alone, and not with adalora",
    ),
}


@pytest.mark.parametrize(("name", "chosen", "match"), NOT_PLANNED.values(), ids=list(NOT_PLANNED))
def test_what_cannot_be_planned(name: str, chosen: Any, match: str) -> None:
    model = ONES[name].model()
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.attach(model, copy.deepcopy(chosen))
    assert not carries(model)


def test_a_tensor_of_the_model_itself_or_of_three_dimensions_that_are_no_experts() -> None:
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "target_modules": [],
        "target_parameters": ["in_proj_weight"],
    }
    with pytest.raises(trimtab.InputError, match="cannot wrap the model itself"):
        hf.plan(fields, nn.MultiheadAttention(8, 2))
    fields["target_parameters"] = ["rel_attn.q"]
    with pytest.raises(trimtab.InputError, match=r"takes it, being \(32, 4, 8\), for 32 experts"):
        hf.plan(fields, more_models.by_name("xlnet").model())


@pytest.fixture
def theirs(peft_writes: Writes) -> Any:
    return peft_writes(ONES["mixtral"], config([UP, DOWN], ["q_proj"]))


LAYER = "base_model.model.model.layers.0.mlp.experts"
OUTER, INNER = f"{LAYER}.lora_A.weight", f"{LAYER}.base_layer.lora_A.weight"


def without(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(key)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "the outer one": (
        lambda t: [t.pop(OUTER), t.pop(OUTER.replace("_A", "_B"))],
        r"misses .* target '.*experts\.down_proj', which would lie at '.*experts'",
    ),
    "the inner one": (
        lambda t: [t.pop(INNER), t.pop(INNER.replace("_A", "_B"))],
        r"misses .* target '.*gate_up_proj', which would lie at '.*experts\.base_layer'",
    ),
    "a half": (without(OUTER), r"misses the tensor '.*experts\.down_proj\.lora\.A'"),
    "one too many": (
        lambda t: t.update({INNER.replace("base_layer", "base_layer.base_layer"): t[INNER]}),
        "'model.layers.0.mlp.experts.base_layer.base_layer', which this model has not",
    ),
    "misshapen": (
        lambda t: t.update({OUTER: torch.ones(12, 17)}),
        r"shape \(12, 17\), and must have \(12, 16\) here, where there are 3 experts",
    ),
    "another rank": (
        lambda t: t.update({OUTER.replace("_A", "_B"): torch.ones(32, 6)}),
        r"shape \(32, 6\), and must have \(32, 12\)",
    ),
}


def refused(folder: Path, match: str, model: nn.Module) -> None:
    state = cases.state(model)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(model, folder)
    assert not carries(model)
    cases.assert_same_state(model, state)


@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=list(WRONG))
def test_wrong_tensors(
    theirs: Any, change: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    path = theirs.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    refused(theirs.folder, match, ONES["mixtral"].model())


WRONG_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "one is left out": ({"target_parameters": [UP]}, r"experts\.base_layer', which this model has"),
    "no list": ({"target_parameters": UP}, "target_parameters must be a list of names"),
    "none of them": ({"target_parameters": ["w9"]}, "no module of this model has such a tensor"),
    "dropout": ({"lora_dropout": 0.5}, "lora_dropout=0.5 cannot stand beside target_parameters"),
    "dora": ({"use_dora": True}, "target_parameters=.* and not with dora"),
    "another rank": ({"rank_pattern": {UP: 5}}, r"\(12, 32\), and must have \(15, 32\)"),
}


@pytest.mark.parametrize(("fields", "match"), WRONG_FIELDS.values(), ids=list(WRONG_FIELDS))
def test_wrong_fields(theirs: Any, fields: dict[str, Any], match: str) -> None:
    path = theirs.folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(theirs.folder, match, ONES["mixtral"].model())


def test_another_number_of_experts(theirs: Any) -> None:
    match = r"shape \(12, 32\), and must have \(16, 32\) here, where there are 4 experts"
    refused(theirs.folder, match, mixtral(4))


NOT_WRITTEN: dict[str, tuple[str, Any, str]] = {
    "dropout elsewhere": (
        "mixtral",
        {"q_proj": trimtab.LoRA(dropout=0.1), "gate_up_proj": trimtab.LoRA()},
        "holds one dropout for all sites",
    ),
    "dropout at a name of experts": (
        "qwen",
        {"layers.1.mlp.up_proj": trimtab.LoRA(dropout=0.1)},
        r"'model\.layers\.1\.mlp\.up_proj' .* format with dropout",
    ),
    "dora": ("mixtral", {"*experts*": trimtab.DoRA()}, "holds no dora there"),
    "a part": ("attends", {"in_proj_weight[query]": trimtab.LoRA()}, "and no part of it"),
    "never called": ("attends", {"out_proj": trimtab.LoRA()}, "is never called"),
}


@pytest.mark.parametrize(("name", "plan", "match"), NOT_WRITTEN.values(), ids=list(NOT_WRITTEN))
def test_what_cannot_be_written(name: str, plan: Any, match: str, tmp_path: Path) -> None:
    model = ONES[name].model()
    trimtab.attach(model, plan)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


class Both(nn.Module):
    """GPT-2's kind of map, and attention that reads its own tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.map = hf_models.pytorch_utils.Conv1D(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.again = nn.Module()
        self.again.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.again.attention(*3 * (self.attention(*3 * (self.map(x),))[0],))[0]


def test_a_map_stored_otherwise_beside_a_tensor_and_a_name_that_means_two(tmp_path: Path) -> None:
    model = Both()
    trimtab.attach(model, trimtab.LoRA(), ["map", "again.attention.in_proj_weight"], name="two")
    with pytest.raises(trimtab.InputError, match=r"'map', stored as \(in, out\), and 'again\.att"):
        trimtab.save(model, tmp_path / "two", format="peft", name="two")
    trimtab.attach(model, {"re:attention.in_proj_weight": trimtab.LoRA()}, name="one")
    with pytest.raises(trimtab.InputError, match=r"would mean 'again\.attention\.in_proj_weight'"):
        trimtab.save(model, tmp_path / "one", format="peft", name="one")


def test_a_pattern_that_hf_peft_would_not_go_by(tmp_path: Path) -> None:
    model = Both()
    model.attention, model.again.attention = nn.Linear(8, 8), nn.Linear(8, 8)
    trimtab.attach(model, trimtab.LoRA(), "re:attention")
    found = trimtab.save(model, tmp_path / "new", format="peft") / "adapter_config.json"
    assert json.loads(found.read_text())["target_modules"] == "attention"  # as a pattern
    model.config = hf_models.MixtralConfig()
    with pytest.raises(trimtab.InputError, match="goes by the last parts of names alone"):
        trimtab.save(model, tmp_path / "other", format="peft")
