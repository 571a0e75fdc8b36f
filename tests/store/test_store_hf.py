"""HF PEFT's folders, both ways, with HF PEFT itself as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import more_models
import pytest
import torch
from both_ways import Writes, by_peft, loaded, there_and_back
from peft import IA3Config, LoHaConfig, LoraConfig
from safetensors.torch import load_file, save_file

import trimtab
from trimtab.store.describe import describe

# transformers deprecates what HF PEFT still asks of it
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

REGEX = r".*\.layer\.[01]\.(attention\.self\.query|output\.dense)"
BERT: dict[str, Any] = {
    "lora": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    "ia3": IA3Config(
        task_type="SEQ_CLS",
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
    ),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["query"]),
    "patterns": LoraConfig(
        r=4,
        target_modules=["query", "value", "dense"],
        rank_pattern={"query": 2, r"layer\.1\.output\.dense": 3, "encoder.layer.0.output.dense": 6},
        alpha_pattern={"value": 5, r"pooler\.dense": 7},
    ),
    "one layer": LoraConfig(target_modules=["query"], layers_to_transform=1),
    "layers by pattern": LoraConfig(
        target_modules=["query", "dense"], layers_to_transform=[1], layers_pattern="layer"
    ),
    "excluded": LoraConfig(target_modules=["query", "dense"], exclude_modules=["pooler.dense"]),
    "excluded by regex": LoraConfig(target_modules=["query"], exclude_modules=r".*\.0\..*"),
    "regex": LoraConfig(target_modules=REGEX, r=2),
    "all-linear": LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_CLS"),
    "dropout": LoraConfig(target_modules=["query"], lora_dropout=0.25),
    "head as a site": LoraConfig(target_modules=["query", "classifier"]),
    "saved whole": LoraConfig(
        target_modules=["query"], modules_to_save=["pooler", "classifier", "LayerNorm"]
    ),
}
OTHERS: dict[str, tuple[str, Any]] = {
    "gpt2 lora": ("gpt2", LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "gpt2 all-linear": ("gpt2", LoraConfig(target_modules="all-linear", fan_in_fan_out=True)),
    "gpt2 ia3": (
        "gpt2",
        IA3Config(
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
        ),
    ),
    "llama lora": ("llama", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])),
    "llama all-linear": ("llama", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")),
    "llama layers": ("llama", LoraConfig(target_modules=["q_proj"], layers_to_transform=[0])),
    "llama ia3": (
        "llama",
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "llama head": (
        "llama",
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    ),
    "t5 lora": ("t5", LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"])),
    "t5 all-linear": ("t5", LoraConfig(target_modules="all-linear")),
    "t5 layers": ("t5", LoraConfig(target_modules=["q", "wi"], layers_to_transform=[1])),
    "t5 ia3": (
        "t5",
        IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
    ),
}
MORE: dict[str, tuple[str, Any]] = {
    **{
        f"{name} all-linear": (name, LoraConfig(target_modules="all-linear", r=2, task_type=task))
        for name, task in [
            ("roberta", "SEQ_CLS"),
            ("albert", "SEQ_CLS"),
            ("distilbert", None),
            ("xlnet", "SEQ_CLS"),
            ("qwen", "CAUSAL_LM"),
            ("bart", "SEQ_2_SEQ_LM"),
            ("vit", None),
            ("whisper", None),
        ]
    },
    "roberta ia3": (
        "roberta",
        IA3Config(
            task_type="SEQ_CLS",
            target_modules=["key", "value", "output.dense"],
            feedforward_modules=["output.dense"],
        ),
    ),
    "albert one layer": ("albert", LoraConfig(target_modules=["query", "ffn"])),
    "xlnet ff": ("xlnet", LoraConfig(target_modules=["layer_1", "layer_2"], task_type="SEQ_CLS")),
    "bart regex": ("bart", LoraConfig(target_modules=r".*decoder.*\.(self_attn\.q_proj|fc1)")),
    "bart layers": (
        "bart",
        LoraConfig(
            target_modules=["v_proj"], layers_to_transform=[0], layers_pattern=["encoder.layers"]
        ),
    ),
    "vit loha": ("vit", LoHaConfig(target_modules=["q_proj", "fc1"], r=3, alpha=5)),
    "vit head": (
        "vit",
        LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    ),
    "whisper ia3": (
        "whisper",
        IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
    ),
    "qwen tied": (
        "qwen",
        LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    ),
    "gpt2 tied": (
        "gpt2",
        LoraConfig(target_modules=["c_fc"], modules_to_save=["wte"], fan_in_fan_out=True),
    ),
    "bert loha": ("bert", LoHaConfig(target_modules=["query", "dense"], rank_pattern={"query": 2})),
    "bert embeddings": (
        "bert",
        LoraConfig(target_modules=["word_embeddings", "query"], r=2, rank_pattern={"query": 3}),
    ),
    "vit patches": ("vit", LoraConfig(target_modules=["projection", "fc1"], r=2)),
    "bert all biases": (
        "bert",
        LoraConfig(target_modules=["query", "output.dense"], bias="all", r=2),
    ),
    "bert biases of targets": (
        "bert",
        LoraConfig(task_type="SEQ_CLS", target_modules=["query"], bias="lora_only"),
    ),
    "gpt2 biases": (
        "gpt2",
        LoraConfig(target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    ),
    "distilbert biases and a head": (
        "distilbert",
        LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], bias="all"),
    ),
}
CONFIGURATIONS = {
    **{f"bert {name}": ("bert", one) for name, one in BERT.items()},
    **OTHERS,
    **MORE,
}
every_configuration = pytest.mark.parametrize(
    ("architecture", "config"), CONFIGURATIONS.values(), ids=list(CONFIGURATIONS)
)


@every_configuration
def test_there_and_back(
    architecture: str, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    there_and_back(more_models.by_name(architecture), config, peft_writes, tmp_path)


def test_hyper_parameters_survive(peft_writes: Writes, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=3, lora_dropout=0.25, use_rslora=True, target_modules=["query"]
    )
    theirs = peft_writes(cases.by_name("bert"), config)
    model = loaded(theirs.folder, theirs.architecture)
    methods = {method for _, method in trimtab.core.adapter.record(model).adapter(None).entries}
    assert methods == {trimtab.LoRA(rank=4, alpha=3, dropout=0.25, rslora=True)}
    trimtab.save(model, tmp_path / "ours", format="peft")
    ours = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    original = json.loads((theirs.folder / "adapter_config.json").read_text())
    for field in ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"):
        assert ours[field] == original[field]


def test_a_plan_of_ranks_loads_there(tmp_path: Path) -> None:
    bert = cases.by_name("bert")
    model = bert.model()
    plan = {
        "query": trimtab.LoRA(rank=2, lr_ratio=4.0, alpha=5.0),
        "*.layer.0.output.dense": trimtab.LoRA(rank=6),
        "mlp": trimtab.LoRA(rank=3, alpha=5.0),
    }
    cases.perturb(trimtab.attach(model, plan, train=["classifier"]))
    folder = trimtab.save(model, tmp_path, format="peft")
    there = cases.logits(by_peft(folder, bert), bert.batch())
    here = cases.logits(model, bert.batch())
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    assert torch.equal(cases.logits(loaded(folder, bert), bert.batch()), here)


@cases.pairs([trimtab.LoRA(), trimtab.IA3()])
def test_what_is_made_here_loads_there(
    method: trimtab.LoRA, architecture: cases.Architecture, tmp_path: Path
) -> None:
    model, batch = architecture.model(), architecture.batch()
    cases.perturb(cases.attach(model, method))
    folder = trimtab.save(model, tmp_path, format="peft")
    there = cases.logits(by_peft(folder, architecture), batch)
    torch.testing.assert_close(there, cases.logits(model, batch), rtol=1e-5, atol=1e-5)


def test_loading_leaves_the_random_numbers(peft_writes: Writes) -> None:
    theirs = peft_writes(cases.by_name("bert"), BERT["lora"])
    model, before = theirs.architecture.model(), torch.get_rng_state()
    trimtab.load(model, theirs.folder, name="reviews")
    assert torch.equal(torch.get_rng_state(), before)
    assert trimtab.summary(model).name == "reviews"


def test_two_formats_on_one_model(peft_writes: Writes, tmp_path: Path) -> None:
    theirs = peft_writes(cases.by_name("bert"), BERT["lora"])
    native = theirs.architecture.model()
    cases.perturb(trimtab.attach(native, trimtab.IA3(), name="ia3"))
    trimtab.save(native, tmp_path / "native")
    model, batch = loaded(theirs.folder, theirs.architecture), theirs.architecture.batch()
    trimtab.load(model, tmp_path / "native")
    assert torch.equal(cases.logits(model, batch), cases.logits(native, batch))
    trimtab.activate(model, "default")
    torch.testing.assert_close(cases.logits(model, batch), theirs.logits, rtol=1e-5, atol=1e-5)


def saved_here(tmp_path: Path, name: str = "reviews") -> Path:
    model = cases.by_name("bert").model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), name=name, train=["classifier"]))
    return trimtab.save(model, tmp_path / "ours", format="peft")


def test_the_name_survives(tmp_path: Path) -> None:
    folder, model = saved_here(tmp_path), cases.by_name("bert").model()
    assert trimtab.load(model, folder).name == "reviews"
    assert describe(folder).name == "reviews"
    assert trimtab.load(cases.by_name("bert").model(), folder, name="other").name == "other"


def test_another_base_is_noticed(tmp_path: Path) -> None:
    folder, model = saved_here(tmp_path), cases.by_name("bert").model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(1.1)
        model.classifier.weight.zero_()  # which the adapter brings along
    with pytest.raises(trimtab.AdapterMismatch, match=r"1 of .* parameters, first 'bert\.embed"):
        trimtab.load(model, folder)
    trimtab.load(model, folder, force=True)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"name": 1, "base": {}}', "must have a 'name' and a 'base'"),
        ('{"name": "a", "base": {}}', "'parameters' must be a dict"),
        ('{"name": "../a", "base": {"parameters": {}, "fingerprint": ""}}', "name has letters"),
    ],
)
def test_what_is_remembered_is_checked(text: str, match: str, tmp_path: Path) -> None:
    path = saved_here(tmp_path) / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"trimtab": text})
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(cases.by_name("bert").model(), path.parent)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (trimtab.BitFit(), r"\(bitfit\) cannot be written in HF PEFT's format"),
        (trimtab.Full(), r"\(full\) cannot be written"),
        ({"query": trimtab.LoRA(), "value": trimtab.IA3()}, r"\(ia3, lora\) cannot be written"),
        ({"query": trimtab.LoRA(), "value": trimtab.LoRA(dropout=0.1)}, "one dropout for all"),
        (
            {"word_embeddings": trimtab.LoHa(), "query": trimtab.LoHa()},
            r"word_embeddings' \(embedding\) cannot be written",
        ),
    ],
    ids=["bitfit", "full", "two methods", "two dropouts", "embedding"],
)
def test_what_their_format_cannot_hold(method: Any, match: str, tmp_path: Path) -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, method)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


def test_parts_of_a_fused_map_are_refused(tmp_path: Path) -> None:
    model = cases.by_name("gpt2").model()
    trimtab.attach(model, trimtab.LoRA(), "c_attn[query]")
    with pytest.raises(trimtab.InputError, match=r"c_attn\[query\]' .* cannot be written"):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()
