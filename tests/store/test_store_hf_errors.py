"""HF PEFT's folders that mean more than can be read, or less: refused by name, the model as it "
"was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

import trimtab
from trimtab.core.adapter import carries

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

BERT = cases.by_name("bert")
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.fixture
def theirs(peft_writes: Callable[[cases.Architecture, Any], Any]) -> Any:
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    return peft_writes(BERT, config)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder: Path, match: str) -> None:
    model = BERT.model()
    state, output = cases.state(model), cases.logits(model, BERT.batch())
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(model, folder)
    assert not carries(model)
    cases.assert_same_state(model, state)
    assert torch.equal(cases.logits(model, BERT.batch()), output)


ON = {
    "use_something": True,
    "layer_replication": [[0, 1]],
    "init_lora_weights": "corda",
    "use_something_new": 3,
    "something_new_config": {"a": 1},
}


@pytest.mark.parametrize(("field", "value"), ON.items(), ids=list(ON))
def test_a_field_that_is_on_and_not_understood(theirs: Any, field: str, value: Any) -> None:
    edit(theirs.folder, **{field: value})
    wrong = "starts from another base" if value == "corda" else "has no equal in lora"
    refused(theirs.folder, f"{field}={value!r} {wrong}".replace("[", r"\["))


@pytest.mark.parametrize("value", [None, False, "", [], {}], ids=repr)
def test_a_field_that_is_off_and_not_understood(theirs: Any, value: Any) -> None:
    edit(theirs.folder, use_something_new=value, use_bdlora=value)
    model = BERT.model()
    trimtab.load(model, theirs.folder)
    there = cases.logits(model, BERT.batch())
    torch.testing.assert_close(there, theirs.logits, rtol=1e-5, atol=1e-5)


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"peft_type": "LOHO"}, r"peft_type 'LOHO' cannot be read; known: .*'LORA'"),
    "no type": ({"peft_type": None}, "peft_type None cannot be read"),
    "type of no name": ({"peft_type": ["LORA"]}, "peft_type"),
    "rank in words": ({"r": "four"}, "rank must be int"),
    "another rank": ({"r": 5}, r"shape \(4, 32\), and must have \(5, 32\)"),
    "a huge rank": ({"r": 10**15}, r"must have \(1000000000000000, 32\)"),
    "a rank beyond all": ({"r": 10**30}, "cannot be built on this model"),
    "modules in one word": ({"modules_to_save": "classifier"}, "modules_to_save must be a list"),
    "modules of numbers": ({"modules_to_save": [1]}, "modules_to_save must be a list"),
    "targets of numbers": ({"target_modules": 3}, "target_modules must be a name or a list"),
    "broken target": ({"target_modules": "(query"}, "target_modules is no regular expression"),
    "broken exclusion": ({"exclude_modules": "["}, "exclude_modules is no regular expression"),
    "patterns in a list": ({"rank_pattern": ["query"]}, "rank_pattern must be an object"),
    "broken pattern": ({"alpha_pattern": {"(": 1}}, "alpha_pattern is no regular expression"),
    "pattern in words": ({"rank_pattern": {"query": "2"}}, "rank must be int"),
    "alpha beyond all": ({"alpha_pattern": {"query": 10**400}}, "alpha must be a finite number"),
    "layers in words": ({"layers_to_transform": "all"}, "layers_to_transform must be a number"),
    "parameters in one word": ({"target_parameters": "x"}, "target_parameters must be a list"),
    "parameters of nothing": ({"target_parameters": ["x.weight"]}, "has such a tensor; there are"),
    "broken layers": (
        {"layers_to_transform": 0, "layers_pattern": "("},
        "layers_pattern is no regular expression",
    ),
}


@pytest.mark.parametrize(("fields", "match"), MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_configuration(theirs: Any, fields: dict[str, Any], match: str) -> None:
    edit(theirs.folder, **fields)
    refused(theirs.folder, match)


def test_a_target_without_its_tensors(theirs: Any) -> None:
    """The most frequent complaint about adapters: keys that are missing load in silence."""
    site = "bert.encoder.layer.0.attention.self.query"
    edit_tensors(theirs.folder, lambda t: [t.pop(key) for key in list(t) if site in key])
    refused(theirs.folder, f"misses the tensors of its target '{site}'")


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r".*\.(query|value)"},
        {"target_modules": ["bert.encoder.layer.0.attention.self.query", "value"]},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [0, 1]},
        {"layers_to_transform": 0, "layers_pattern": "layer"},
    ],
    ids=str,
)
def test_a_target_without_its_tensors_however_it_is_named(
    theirs: Any, fields: dict[str, Any]
) -> None:
    edit_tensors(theirs.folder, lambda t: [t.pop(key) for key in list(t) if ".0." in key])
    edit(theirs.folder, **fields)
    refused(theirs.folder, "misses the tensors of its target")


@pytest.mark.parametrize("fields", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases_that_are_announced_and_missing(theirs: Any, fields: dict[str, Any]) -> None:
    edit(theirs.folder, **fields)
    refused(theirs.folder, "misses the bias of 'bert")


def test_half_of_a_target(theirs: Any) -> None:
    edit_tensors(theirs.folder, lambda t: t.pop(QUERY))
    refused(theirs.folder, r"misses the tensor 'bert.*query\.lora\.A'")


def test_a_whole_module_without_its_tensor(theirs: Any) -> None:
    edit_tensors(theirs.folder, lambda t: t.pop("base_model.model.classifier.bias"))
    refused(theirs.folder, "misses the tensor 'classifier")


def test_a_tensor_of_no_site(theirs: Any) -> None:
    extra = QUERY.replace("layer.0", "layer.7")
    edit_tensors(theirs.folder, lambda t: t.update({extra: torch.ones(4, 32)}))
    refused(theirs.folder, "'bert.encoder.layer.7.attention.self.query', which this model has not")


def test_a_tensor_that_nobody_announced(theirs: Any) -> None:
    extra = "base_model.model.bert.pooler.dense.weight"
    edit_tensors(theirs.folder, lambda t: t.update({extra: torch.ones(32, 32)}))
    refused(theirs.folder, f"a tensor '{extra}' that belongs to no site")


def test_lora_where_there_is_no_linear_map(theirs: Any) -> None:
    norm = "base_model.model.bert.embeddings.LayerNorm.lora_A.weight"
    edit_tensors(theirs.folder, lambda t: t.update({norm: torch.ones(4, 32)}))
    refused(theirs.folder, r"lora cannot act at 'bert\.embeddings\.LayerNorm'")


def test_a_misshapen_tensor(theirs: Any) -> None:
    edit_tensors(theirs.folder, lambda t: t.update({QUERY: torch.ones(4, 31)}))
    refused(theirs.folder, r"shape \(4, 31\), and must have \(4, 32\)")


def test_no_tensors_at_all(theirs: Any) -> None:
    edit_tensors(theirs.folder, lambda t: t.clear())
    edit(theirs.folder, target_modules=None)
    refused(theirs.folder, "has no tensors")


def test_a_pickle_is_never_loaded(theirs: Any) -> None:
    (theirs.folder / "adapter_model.safetensors").rename(theirs.folder / "adapter_model.bin")
    refused(theirs.folder, r"adapter_model\.bin is a pickle, which is never loaded")


def test_half_a_file(theirs: Any) -> None:
    path = theirs.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(theirs.folder, "no whole safetensors file")
    (theirs.folder / "adapter_config.json").write_text('["LORA"]')
    refused(theirs.folder, "must hold a JSON object, not list")


def test_a_model_of_other_size(theirs: Any) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    smaller = BertForSequenceClassification(BertConfig(**{**cases.BERT, "hidden_size": 16}))
    with pytest.raises(trimtab.AdapterMismatch, match="shape"):
        trimtab.load(smaller, theirs.folder)
    assert not carries(smaller)
