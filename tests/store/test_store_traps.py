"""The traps of transformers 5 and of HF PEFT's files, one test each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import more_models
import of_experts
import pytest
import torch
from both_ways import Writes
from peft import IA3Config, LNTuningConfig, LoraConfig, OFTConfig, TrainableTokensConfig, VeraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import record
from trimtab.store.hf.renames import Renames

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save vera_A:UserWarning"),
]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def entries(model: nn.Module) -> dict[str, str]:
    return {site: method.name for site, method in record(model).adapter(None).entries}


def equal(theirs: Any, model: nn.Module) -> None:
    found = cases.logits(model, theirs.architecture.batch())
    torch.testing.assert_close(found, theirs.logits, rtol=1e-5, atol=1e-5)


def load(theirs: Any) -> nn.Module:
    model = theirs.architecture.model()
    trimtab.load(model, theirs.folder)
    return model


def test_an_adapted_model_ties_resizes_and_saves(tmp_path: Path) -> None:
    gpt2 = cases.by_name("gpt2")
    model, batch = gpt2.model(), gpt2.batch()
    before = cases.logits(model, batch)
    trimtab.attach(model, trimtab.LoRA(), "all-linear")
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(cases.logits(again.eval(), batch), before)
    model.resize_token_embeddings(cases.VOCAB + 8)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(cases.logits(model, batch)[..., : cases.VOCAB], before)


def test_names_of_version_4(peft_writes: Writes, tmp_path: Path) -> None:
    theirs = peft_writes(more_models.by_name("vit"), LoraConfig(target_modules=["q_proj"]))
    renames = Renames(theirs.architecture.model())
    prefix = "base_model.model."
    old = {}
    for key, tensor in tensors(theirs.folder).items():
        path, _, leaf = key.removeprefix(prefix).partition(".lora")
        old[f"{prefix}{renames.former(path)}.lora{leaf}"] = tensor
    assert any(".attention.attention.query.lora_A.weight" in key for key in old)
    save_file(old, theirs.folder / "adapter_model.safetensors")
    edit(theirs.folder, lambda config: config.update(target_modules=["query"]))
    equal(theirs, load(theirs))


def test_roberta_stores_the_classifier_whole(peft_writes: Writes) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")
    theirs = peft_writes(more_models.by_name("roberta"), config)
    listed = json.loads((theirs.folder / "adapter_config.json").read_text())["target_modules"]
    assert "classifier.dense" in listed or "dense" in listed
    model = load(theirs)
    assert entries(model)["classifier.dense"] == "whole"
    equal(theirs, model)


def test_gpt2s_biases(peft_writes: Writes) -> None:
    config = LoraConfig(target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True)
    theirs = peft_writes(cases.by_name("gpt2"), config)
    key = "base_model.model.transformer.h.0.attn.c_attn.base_layer.bias"
    assert key in tensors(theirs.folder)
    equal(theirs, load(theirs))


@pytest.mark.filterwarnings("ignore:Adapter 'default'.* have invalid shape")
def test_a_bias_of_the_update(peft_writes: Writes) -> None:
    config = LoraConfig(target_modules=["query"], lora_bias=True, r=2)
    theirs = peft_writes(cases.by_name("bert"), config)
    assert any(key.endswith(".lora_B.bias") for key in tensors(theirs.folder))
    equal(theirs, load(theirs))


@pytest.mark.parametrize("dora", [False, True])
def test_keys_without_weight(peft_writes: Writes, dora: bool) -> None:
    config = LoraConfig(target_modules=["word_embeddings", "query"], use_dora=dora, r=2)
    theirs = peft_writes(cases.by_name("bert"), config)
    bare = ["lora_embedding_A", "lora_embedding_B", *(["lora_magnitude_vector"] if dora else [])]
    kept = tensors(theirs.folder)
    assert all(any(key.endswith(f".{leaf}") for key in kept) for leaf in bare)
    equal(theirs, load(theirs))
    # some versions write them with it
    longer = {f"{k}.weight" if k.endswith("_vector") else k: t for k, t in kept.items()}
    save_file(longer, theirs.folder / "adapter_model.safetensors")
    equal(theirs, load(theirs))


def test_shapes_of_ia3(peft_writes: Writes) -> None:
    config = IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"])
    theirs = peft_writes(cases.by_name("bert"), config)
    layer = "base_model.model.bert.encoder.layer.0"
    kept = tensors(theirs.folder)
    assert kept[f"{layer}.attention.self.key.ia3_l"].shape == (32, 1)
    assert kept[f"{layer}.output.dense.ia3_l"].shape == (1, 64)
    equal(theirs, load(theirs))


def test_veras_projection_left_out_is_drawn(peft_writes: Writes, tmp_path: Path) -> None:
    config = VeraConfig(
        target_modules=["query", "output.dense"],
        r=5,
        save_projection=False,
        projection_prng_key=11,
    )
    theirs = peft_writes(cases.by_name("bert"), config)
    assert not any("vera_A" in key for key in tensors(theirs.folder))
    model = load(theirs)
    equal(theirs, model)
    ours = tensors(trimtab.save(model, tmp_path / "ours", format="peft"))
    assert ours["base_model.vera_A"].shape == (5, 64)
    assert ours["base_model.vera_B"].shape == (32, 5)
    edit(theirs.folder, lambda config: config.update(save_projection=True))
    with pytest.raises(trimtab.AdapterMismatch, match=r"misses the tensor 'shared\.vera\.A'"):
        load(theirs)


def test_experts_lie_beneath_base_layer(peft_writes: Writes) -> None:
    """Two tensors of one module: the first one's factors lie inmost."""
    theirs = peft_writes(
        of_experts.ONES["mixtral"], of_experts.config(["gate_up_proj", "down_proj"])
    )
    experts = "base_model.model.model.layers.0.mlp.experts"
    kept = tensors(theirs.folder)
    assert kept[f"{experts}.base_layer.lora_A.weight"].shape == (3 * 4, 32)
    assert kept[f"{experts}.lora_A.weight"].shape == (3 * 4, 16)
    model = load(theirs)
    assert entries(model) == {
        f"model.layers.{block}.mlp.experts.{tensor}": "lora"
        for block in (0, 1)
        for tensor in ("gate_up_proj", "down_proj")
    }
    equal(theirs, model)


def test_keys_of_tokens(peft_writes: Writes) -> None:
    rows = list(range(40))
    beside = LoraConfig(target_modules=["q_proj"], trainable_token_indices=rows)
    theirs = peft_writes(cases.by_name("llama"), beside)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert key in tensors(theirs.folder)
    equal(theirs, load(theirs))


def test_tokens_of_a_tied_embedding_act_at_the_head(peft_writes: Writes) -> None:
    theirs = peft_writes(cases.by_name("gpt2"), TrainableTokensConfig(token_indices=[0, 1]))
    model = load(theirs)
    assert entries(model) == {"transformer.wte": "tokens", "lm_head": "tokens"}
    base = cases.logits(theirs.architecture.model(), theirs.architecture.batch())
    changed = (cases.logits(model, theirs.architecture.batch()) - base).abs().amax((0, 1))
    assert changed[:2].min() > 1e-3  # which the batch's tokens, all from 3 on, do not name
    assert changed[2:].max() < 1e-5
    equal(theirs, model)


def test_keys_of_norms(peft_writes: Writes) -> None:
    theirs = peft_writes(cases.by_name("gpt2"), LNTuningConfig(target_modules=["ln_f"]))
    assert sorted(tensors(theirs.folder)) == [
        f"base_model.model.transformer.ln_f.ln_tuning_layers.{leaf}" for leaf in ("bias", "weight")
    ]
    equal(theirs, load(theirs))


@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq", "corda", "lora_ga"])
def test_what_is_relative_to_a_changed_base(peft_writes: Writes, start: str) -> None:
    theirs = peft_writes(cases.by_name("bert"), LoraConfig(target_modules=["query"]))
    edit(theirs.folder, lambda config: config.update(init_lora_weights=start))
    with pytest.raises(trimtab.InputError, match=f"init_lora_weights='{start}' .* another base"):
        load(theirs)


def test_ofts_default_is_a_series(peft_writes: Writes) -> None:
    theirs = peft_writes(cases.by_name("bert"), OFTConfig(target_modules=["query"]))
    model = load(theirs)
    methods = {method for _, method in record(model).adapter(None).entries}
    assert methods == {trimtab.OFT(block=32, neumann=5)}
    equal(theirs, model)
    edit(theirs.folder, lambda config: config.update(peft_version="0.17.1"))
    with pytest.raises(
        trimtab.InputError, match=r"use_cayley_neumann .* before peft_version 0\.18"
    ):
        load(theirs)


def test_xlnets_attention_is_not_skipped(tmp_path: Path) -> None:
    model = more_models.by_name("xlnet").model()
    adapter = trimtab.attach(model, trimtab.LoRA(), "all-linear")
    assert any("rel_attn" in site for site, _ in adapter.entries)
    with pytest.raises(trimtab.InputError, match=r"rel_attn.* cannot be written in HF PEFT's"):
        trimtab.save(model, tmp_path / "new", format="peft")


def test_a_field_that_is_not_understood(peft_writes: Writes) -> None:
    theirs = peft_writes(cases.by_name("bert"), LoraConfig(target_modules=["query"]))
    edit(theirs.folder, lambda config: config.update(of_tomorrow=None, and_more={}))
    equal(theirs, load(theirs))
    edit(theirs.folder, lambda config: config.update(of_tomorrow=0.5))
    with pytest.raises(trimtab.InputError, match=r"of_tomorrow=0\.5 has no equal"):
        load(theirs)


def test_files_of_before_have_no_digest(tmp_path: Path) -> None:
    bert = cases.by_name("bert")
    model = bert.model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA()))
    trimtab.save(model, tmp_path)
    path = tmp_path / "adapter.json"
    config = json.loads(path.read_text())
    del config["digest"]
    path.write_text(json.dumps(config))
    other = bert.model()
    trimtab.load(other, tmp_path)
    assert torch.equal(cases.logits(other, bert.batch()), cases.logits(model, bert.batch()))
    path.write_text(json.dumps({**config, "digest": "0" * 64}))
    with pytest.raises(trimtab.AdapterMismatch, match="one of the two was replaced or changed"):
        trimtab.load(bert.model(), tmp_path)
