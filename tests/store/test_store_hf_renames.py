"""Adapters made under transformers 4, whose modules had other names."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import more_models
import peft
import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_store_hf import pytestmark  # noqa: F401
from torch import nn

import trimtab
from trimtab.store.hf.renames import Renames

VIT = more_models.by_name("vit")
OLD = {
    "vit.layers.0.attention.q_proj": "vit.encoder.layer.0.attention.attention.query",
    "vit.layers.1.attention.k_proj": "vit.encoder.layer.1.attention.attention.key",
    "vit.layers.1.attention.v_proj": "vit.encoder.layer.1.attention.attention.value",
    "vit.layers.0.attention.o_proj": "vit.encoder.layer.0.attention.output.dense",
    "vit.layers.0.mlp.fc1": "vit.encoder.layer.0.intermediate.dense",
    "vit.layers.0.mlp.fc2": "vit.encoder.layer.0.output.dense",
    "classifier": "classifier",
}


def old(name: str) -> str:
    """The name in version 4, written down by hand."""
    name = name.replace("vit.layers.", "vit.encoder.layer.")
    for now, then in [
        ("attention.q_proj", "attention.attention.query"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]:
        name = name.replace(now, then)
    return name


@pytest.mark.parametrize(("now", "then"), OLD.items(), ids=list(OLD))
def test_a_name_there_and_back(now: str, then: str) -> None:
    renames = Renames(VIT.model())
    assert renames.current(then) == now
    assert renames.former(now).split(".")[-1] == then.split(".")[-1]


def test_a_module_that_is_no_model_of_transformers() -> None:
    renames = Renames(nn.Linear(2, 2))
    assert renames.current("attention.query") == renames.former("attention.query")


def make_old(folder: Path, targets: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({old(key): tensor for key, tensor in load_file(path).items()}, path)
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), "target_modules": targets}
    path.write_text(json.dumps(config))


@pytest.fixture
def theirs(peft_writes: Callable[[cases.Architecture, Any], Any]) -> Any:
    targets = ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
    return peft_writes(VIT, LoraConfig(target_modules=targets, modules_to_save=["classifier"]))


@pytest.mark.parametrize(
    "targets",
    [["query", "value", "dense"], r".*\.(query|value|dense)"],
    ids=["names", "regex"],
)
def test_an_adapter_made_under_version_4(theirs: Any, targets: Any) -> None:
    make_old(theirs.folder, targets)
    model = VIT.model()
    trimtab.load(model, theirs.folder)
    here = cases.logits(model, VIT.batch())
    torch.testing.assert_close(here, theirs.logits, rtol=1e-5, atol=1e-5)
    sites = dict(trimtab.core.adapter.record(model).adapter(None).entries)
    assert "vit.layers.0.attention.q_proj" in sites


def test_a_target_of_version_4_without_its_tensors(theirs: Any) -> None:
    make_old(theirs.folder, ["query", "value", "dense"])
    path = theirs.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: t for key, t in tensors.items() if ".0.intermediate" not in key}, path)
    with pytest.raises(trimtab.AdapterMismatch, match=r"misses .*'vit\.layers\.0\.mlp\.fc1'"):
        trimtab.load(VIT.model(), theirs.folder)


def test_one_module_under_both_names(theirs: Any) -> None:
    path = theirs.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {old(key): tensor.clone() for key, tensor in tensors.items()}, path)
    with pytest.raises(trimtab.AdapterMismatch, match="two tensors for 'vit"):
        trimtab.load(VIT.model(), theirs.folder)


def _dinov2() -> Any:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**small, image_size=28, patch_size=14)
    return transformers.Dinov2ForImageClassification(config)


def _clip() -> Any:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(
        **small, intermediate_size=64, image_size=28, patch_size=14
    )
    return transformers.CLIPVisionModel(config)


def _segformer() -> Any:
    each = {"hidden_sizes": [8] * 4, "sr_ratios": [1] * 4, "num_attention_heads": [1] * 4}
    config = transformers.SegformerConfig(**each, depths=[1] * 4, decoder_hidden_size=8)
    return transformers.SegformerForSemanticSegmentation(config)


QUERY = [(r"attention\.q_proj", "attention.attention.query")]
FURTHER: dict[str, tuple[Any, list[str], list[tuple[str, str]]]] = {
    "dinov2": (_dinov2, ["q_proj", "fc1"], QUERY),
    "clip": (_clip, ["q_proj", "fc2"], [(r"model\.encoder", "model.vision_model.encoder")]),
    "segformer": (
        _segformer,
        ["q_proj", "fc2"],
        [
            (r"stages\.(\d)\.blocks\.(\d)", r"encoder.block.\1.\2"),
            (r"attention\.q_proj", "attention.self.query"),
            (r"mlp\.fc2", "mlp.dense2"),
        ],
    ),
}
"""Models, targets, and what these were called in version 4, written down by hand."""


@pytest.mark.parametrize(("make", "targets", "then"), FURTHER.values(), ids=list(FURTHER))
def test_other_families(
    make: Any, targets: list[str], then: list[tuple[str, str]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, pixels = make().eval(), torch.randn(2, 3, 28, 28)
    fresh = copy.deepcopy(model)
    theirs = peft.get_peft_model(model, LoraConfig(target_modules=targets, r=2))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    expected = theirs(pixel_values=pixels)[0]
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    renamed = {}
    for key, tensor in load_file(path).items():
        for now, before in then:
            key = re.sub(now, before, key)
        renamed[key] = tensor
    assert renamed.keys() != load_file(path).keys()
    save_file(renamed, path)
    trimtab.load(fresh, tmp_path)
    torch.testing.assert_close(fresh(pixel_values=pixels)[0], expected, rtol=1e-5, atol=1e-5)
