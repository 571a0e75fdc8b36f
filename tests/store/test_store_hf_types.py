"""Every type of HF PEFT's that is read and written, both ways, on several shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import more_models
import peft
import pytest
import torch
from both_ways import Writes, assert_same_fields, by_peft, configurations, loaded, there_and_back
from peft import (
    AdaLoraConfig,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from safetensors.torch import load_file

import trimtab

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save vera_A:UserWarning"),
]
ADALORA: dict[str, Any] = {"total_step": 10, "init_r": 4, "target_r": 2}
EXACT: dict[str, Any] = {"use_cayley_neumann": False}
CONFIGURATIONS: dict[str, tuple[str, Any]] = {
    "vera bert": (
        "bert",
        VeraConfig(task_type="SEQ_CLS", target_modules=["query", "output.dense"], r=6),
    ),
    "vera gpt2": ("gpt2", VeraConfig(target_modules=["c_attn"], r=5, fan_in_fan_out=True)),
    "vera llama": (
        "llama",
        VeraConfig(target_modules="all-linear", r=5, projection_prng_key=7, d_initial=0.3),
    ),
    "vera t5": ("t5", VeraConfig(target_modules=["q", "wi"], r=5, vera_dropout=0.1)),
    "vera biases": ("bert", VeraConfig(target_modules=["query"], r=5, bias="vera_only")),
    "dora bert": (
        "bert",
        LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=3, use_dora=True),
    ),
    "dora gpt2": (
        "gpt2",
        LoraConfig(target_modules=["c_attn"], r=3, use_dora=True, fan_in_fan_out=True, bias="all"),
    ),
    "dora llama": (
        "llama",
        LoraConfig(
            target_modules=["q_proj", "embed_tokens"],
            r=3,
            use_dora=True,
            use_rslora=True,
            rank_pattern={"layers.1.self_attn.q_proj": 2},
        ),
    ),
    "dora vit": ("vit", LoraConfig(target_modules=["projection", "fc1"], r=2, use_dora=True)),
    "adalora bert": (
        "bert",
        AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], lora_alpha=5, **ADALORA),
    ),
    "adalora gpt2": (
        "gpt2",
        AdaLoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **ADALORA),
    ),
    "adalora t5": ("t5", AdaLoraConfig(target_modules=["q", "wo"], lora_dropout=0.1, **ADALORA)),
    "adalora biases": (
        "bert",
        AdaLoraConfig(target_modules=["query"], bias="lora_only", **ADALORA),
    ),
    "oft bert": ("bert", OFTConfig(task_type="SEQ_CLS", target_modules=["query"], **EXACT)),
    "oft neumann": ("bert", OFTConfig(target_modules=["dense"], oft_block_size=8)),
    "oft vit": (
        "vit",
        OFTConfig(target_modules=["q_proj", "fc1"], oft_block_size=4, num_cayley_neumann_terms=3),
    ),
    "oft llama": (
        "llama",
        OFTConfig(target_modules=["q_proj", "down_proj"], r=4, oft_block_size=0, **EXACT),
    ),
    "oft bounded, shared": (
        "t5",
        OFTConfig(target_modules=["q"], coft=True, eps=0.05, block_share=True, **EXACT),
    ),
    "oft embeddings": ("bert", OFTConfig(target_modules=["word_embeddings"], oft_block_size=8)),
    "oft biases": ("bert", OFTConfig(target_modules=["query"], bias="oft_only", **EXACT)),
    "ln bert": (
        "bert",
        LNTuningConfig(
            task_type="SEQ_CLS", target_modules=["LayerNorm"], modules_to_save=["pooler"]
        ),
    ),
    "ln gpt2": ("gpt2", LNTuningConfig(target_modules=["ln_1", "ln_f"])),
    "ln llama": ("llama", LNTuningConfig(task_type="CAUSAL_LM")),
    "ln t5": ("t5", LNTuningConfig(target_modules=["layer_norm"])),
    "tokens bert": ("bert", TrainableTokensConfig(token_indices=list(range(40, 4, -1)))),
    "tokens gpt2, tied": ("gpt2", TrainableTokensConfig(token_indices=[3, 17])),
    "tokens llama": ("llama", TrainableTokensConfig(token_indices=list(range(40)))),
    "tokens beside lora": (
        "llama",
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=list(range(40))),
    ),
    "tokens beside lora, tied": (
        "qwen",
        LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 9]}),
    ),
    "tokens beside dora": (
        "bert",
        LoraConfig(
            target_modules=["query"],
            use_dora=True,
            trainable_token_indices={"word_embeddings": list(range(30))},
        ),
    ),
}


@pytest.mark.parametrize(
    ("architecture", "config"), CONFIGURATIONS.values(), ids=list(CONFIGURATIONS)
)
def test_there_and_back(
    architecture: str, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    there_and_back(more_models.by_name(architecture), config, peft_writes, tmp_path)
    assert_same_fields(*configurations(tmp_path))


@pytest.mark.filterwarnings("ignore:Adapter 'default'.* have invalid shape")
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
def test_what_adalora_pruned(tmp_path: Path) -> None:
    """Trained there until triplets are masked: the file holds those left, and which they are."""
    bert = more_models.by_name("bert")
    config = AdaLoraConfig(
        **{**ADALORA, "total_step": 4}, tfinal=1, deltaT=1, target_modules=["query", "dense"]
    )
    theirs = peft.get_peft_model(bert.model(), config)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    for step in range(1, 5):
        theirs(**bert.batch()).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    theirs.eval().save_pretrained(tmp_path / "theirs")
    kept = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert any(tensor.shape[0] < 4 for key, tensor in kept.items() if key.endswith("lora_A"))
    model = loaded(tmp_path / "theirs", bert)
    expected = cases.logits(theirs, bert.batch())
    torch.testing.assert_close(cases.logits(model, bert.batch()), expected, rtol=1e-5, atol=1e-5)
    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    written = load_file(ours / "adapter_model.safetensors")
    assert written.keys() == kept.keys()
    for key, tensor in kept.items():
        assert torch.equal(tensor, written[key])
    one, other = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())["rank_pattern"]
        for name in ("theirs", "ours")
    )
    assert one == other
    there = cases.logits(by_peft(ours, bert), bert.batch())
    torch.testing.assert_close(there, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [[True], [1, 1, 1, 1], "all", None])
def test_a_broken_mask(pattern: Any, peft_writes: Writes) -> None:
    bert = more_models.by_name("bert")
    config = AdaLoraConfig(target_modules=["query"], **ADALORA)
    folder = peft_writes(bert, config).folder
    path = folder / "adapter_config.json"
    name = "bert.encoder.layer.0.attention.self.query.lora_E"
    saved = {**json.loads(path.read_text()), "rank_pattern": {name: pattern}}
    path.write_text(json.dumps(saved))
    with pytest.raises(trimtab.InputError, match="must be 4 times true or false"):
        trimtab.load(bert.model(), folder)


REFUSED: dict[str, tuple[str, Any, str | list[str] | None, str]] = {
    "oft, stored the other way": ("gpt2", trimtab.OFT(), "c_attn", "cannot be written"),
    "two seeds": (
        "bert",
        {"query": trimtab.VeRA(rank=4), "value": trimtab.VeRA(rank=4, seed=1)},
        None,
        "one seed for all sites",
    ),
    "lora beside dora": (
        "bert",
        {"query": trimtab.LoRA(), "value": trimtab.DoRA()},
        None,
        r"\(dora, lora\) cannot be written",
    ),
    "tokens beside vera": (
        "bert",
        {"query": trimtab.VeRA(rank=4), "embedding": trimtab.Tokens(rows=(3,))},
        None,
        r"\(tokens, vera\) cannot be written",
    ),
}


@pytest.mark.parametrize(("name", "method", "to", "match"), REFUSED.values(), ids=list(REFUSED))
def test_what_their_files_cannot_hold(
    name: str, method: Any, to: Any, match: str, tmp_path: Path
) -> None:
    model = more_models.by_name(name).model()
    trimtab.attach(model, method, to)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a pattern of ranks": ("vera", {"rank_pattern": {"query": 3}}, "rank_pattern=.* no equal"),
    "one term": ("oft", {"num_cayley_neumann_terms": 1}, "neumann must be 0 or at least 2"),
    "terms in words": ("oft", {"num_cayley_neumann_terms": "five"}, "neumann must be int"),
    "alpha in words": ("adalora", {"lora_alpha": "much"}, "one is no number"),
}


@pytest.mark.parametrize(("kind", "fields", "match"), UNFIT.values(), ids=list(UNFIT))
def test_fields_that_do_not_fit(
    kind: str, fields: dict[str, Any], match: str, peft_writes: Writes
) -> None:
    config = {
        "vera": VeraConfig(target_modules=["query"], r=4),
        "oft": OFTConfig(target_modules=["query"]),
        "adalora": AdaLoraConfig(target_modules=["query"], **ADALORA),
    }[kind]
    bert = more_models.by_name("bert")
    folder = peft_writes(bert, config).folder
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(bert.model(), folder)
