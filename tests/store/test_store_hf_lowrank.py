"""HF PEFT's further types of low rank, both ways, on several shapes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import more_models
import pytest
import torch
from both_ways import Writes, assert_same_fields, by_peft, configurations, loaded, there_and_back
from peft import (
    DeloraConfig,
    GraloraConfig,
    HiraConfig,
    LoKrConfig,
    RandLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

import trimtab

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save basis_A:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


class Waves(nn.Sequential):
    """Convolutions of one dimension."""

    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        return SimpleNamespace(logits=super().forward(x))


WAVES = cases.Architecture(
    "waves",
    lambda: Waves(nn.Conv1d(8, 12, 3, padding=1), nn.Conv1d(12, 6, 3, stride=2)),
    lambda: {"x": torch.linspace(-2, 2, 2 * 8 * 9).reshape(2, 8, 9).sin()},
)


def by_name(name: str) -> cases.Architecture:
    return WAVES if name == "waves" else more_models.by_name(name)


BANK: dict[str, Any] = {"num_vectors": 12, "vector_length": 16}
VECTOR: dict[str, Any] = {"theta_d_length": 50, "init_theta_d_bound": 0.3}
CONFIGURATIONS: dict[str, tuple[str, Any]] = {
    "lokr bert": ("bert", LoKrConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=2)),
    "lokr llama, both": (
        "llama",
        LoKrConfig(
            target_modules="all-linear",
            r=1,
            alpha=3,
            decompose_both=True,
            rank_pattern={"v_proj": 4},
            alpha_pattern={"layers.1.mlp.up_proj": 2},
        ),
    ),
    "lokr t5, factor": ("t5", LoKrConfig(target_modules=["q", "wo"], r=3, decompose_factor=4)),
    "lokr t5, odd factor": ("t5", LoKrConfig(target_modules=["k"], r=3, decompose_factor=5)),
    "lokr lycoris": ("bert", LoKrConfig(target_modules=["key"], r=2, init_weights="lycoris")),
    "lokr vit": ("vit", LoKrConfig(target_modules=["projection", "fc1"], r=1)),
    "lokr vit, whole": ("vit", LoKrConfig(target_modules=["projection", "fc1"], r=20)),
    "lokr vit, tucker": (
        "vit",
        LoKrConfig(target_modules=["projection"], r=1, use_effective_conv2d=True),
    ),
    "lokr waves": ("waves", LoKrConfig(target_modules=["0", "1"], r=1)),
    "lokr waves, tucker": (
        "waves",
        LoKrConfig(target_modules=["0", "1"], r=2, decompose_factor=1, use_effective_conv2d=True),
    ),
    "hira bert": (
        "bert",
        HiraConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "dense", "word_embeddings"],
            r=3,
        ),
    ),
    "hira gpt2": ("gpt2", HiraConfig(target_modules=["c_attn"], r=3, fan_in_fan_out=True)),
    "hira llama": ("llama", HiraConfig(target_modules="all-linear", r=2, init_weights="gaussian")),
    "hira t5": ("t5", HiraConfig(target_modules=["q", "wi"], r=2, hira_dropout=0.1)),
    "hira vit": ("vit", HiraConfig(target_modules=["projection", "fc1"], r=2)),
    "hira waves": ("waves", HiraConfig(target_modules=["0", "1"], r=2)),
    "randlora bert": (
        "bert",
        RandLoraConfig(
            task_type="SEQ_CLS", target_modules=["query", "dense"], r=5, bias="randlora_only"
        ),
    ),
    "randlora gpt2": (
        "gpt2",
        RandLoraConfig(target_modules=["c_attn", "c_proj"], r=7, fan_in_fan_out=True),
    ),
    "randlora llama": (
        "llama",
        RandLoraConfig(target_modules="all-linear", r=8, projection_prng_key=7, sparse=True),
    ),
    "randlora t5": (
        "t5",
        RandLoraConfig(target_modules=["q", "wi"], r=8, randlora_alpha=20, very_sparse=True),
    ),
    "vb-lora bert": (
        "bert",
        VBLoRAConfig(task_type="SEQ_CLS", target_modules=["query"], bias="vblora_only", **BANK),
    ),
    "vb-lora gpt2": ("gpt2", VBLoRAConfig(target_modules=["c_attn"], fan_in_fan_out=True, **BANK)),
    "vb-lora llama": ("llama", VBLoRAConfig(target_modules="all-linear", r=2, topk=3, **BANK)),
    "vb-lora t5": ("t5", VBLoRAConfig(target_modules=["q", "wi"], vblora_dropout=0.1, **BANK)),
    "unilora bert": (
        "bert",
        UniLoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], **VECTOR),
    ),
    "unilora gpt2": (
        "gpt2",
        UniLoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **VECTOR),
    ),
    "unilora llama": (
        "llama",
        UniLoraConfig(target_modules="all-linear", r=2, proj_seed=3, theta_d_length=7000),
    ),
    "unilora t5": (
        "t5",
        UniLoraConfig(target_modules=["q", "wi"], bias="none", unilora_dropout=0.1, **VECTOR),
    ),
    "unilora biases": (
        "bert",
        UniLoraConfig(target_modules=["value"], bias="unilora_only", **VECTOR),
    ),
    "delora bert": (
        "bert",
        DeloraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=3),
    ),
    "delora llama": (
        "llama",
        DeloraConfig(
            target_modules="all-linear",
            r=3,
            delora_lambda=4,
            rank_pattern={"q_proj": 2},
            lambda_pattern={"layers.1.*.v_proj": 9},
        ),
    ),
    "delora t5": ("t5", DeloraConfig(target_modules=["q", "wi"], r=2, module_dropout=0.1)),
    "delora biases": ("bert", DeloraConfig(target_modules=["key"], r=2, bias="delora_only")),
    "gralora bert": (
        "bert",
        GraloraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=4),
    ),
    "gralora gpt2": (
        "gpt2",
        GraloraConfig(target_modules=["c_attn"], r=8, gralora_k=4, fan_in_fan_out=True),
    ),
    "gralora llama, hybrid": (
        "llama",
        GraloraConfig(target_modules="all-linear", r=4, hybrid_r=3, alpha=5),
    ),
    "gralora t5": (
        "t5",
        GraloraConfig(target_modules=["q", "wi"], r=2, gralora_k=1, gralora_dropout=0.1),
    ),
    "gralora biases": (
        "bert",
        GraloraConfig(target_modules=["value"], r=2, bias="gralora_only"),
    ),
}
PLACES = {"target_modules", "modules_to_save", "base_model_name_or_path", "task_type"} | {
    *("inference_mode", "peft_version", "rank_pattern", "alpha_pattern", "lambda_pattern"),
    *("r", "alpha", "delora_lambda"),  # the usual one, where a pattern has others
}


@pytest.mark.parametrize(
    ("architecture", "config"), CONFIGURATIONS.values(), ids=list(CONFIGURATIONS)
)
def test_there_and_back(
    architecture: str, config: Any, peft_writes: Writes, tmp_path: Path
) -> None:
    there_and_back(by_name(architecture), config, peft_writes, tmp_path)
    theirs, ours = configurations(tmp_path)
    patterned = any(theirs.get(f"{one}_pattern") for one in ("rank", "alpha", "lambda"))
    but = PLACES if patterned else PLACES - {"r", "alpha", "delora_lambda"}
    assert_same_fields(theirs, ours, but)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("options", [{}, {"sparse": True}, {"very_sparse": True}], ids=str)
def test_randloras_bases_left_out_are_drawn(
    options: dict[str, Any], peft_writes: Writes, tmp_path: Path
) -> None:
    gpt2 = more_models.by_name("gpt2")
    config = RandLoraConfig(
        target_modules=["c_attn", "c_proj"], r=6, save_projection=False, **options
    )
    theirs = peft_writes(gpt2, config)
    assert not any("randlora_A" in key for key in tensors(theirs.folder))
    model = loaded(theirs.folder, gpt2)
    torch.testing.assert_close(
        cases.logits(model, gpt2.batch()), theirs.logits, rtol=1e-5, atol=1e-5
    )
    ours = tensors(trimtab.save(model, tmp_path / "ours", format="peft"))
    for name in ("A", "B"):
        copies = [one for key, one in ours.items() if key.endswith(f"randlora_{name}")]
        assert len(copies) == 7  # at six sites, and once for all
        assert all(torch.equal(one, copies[0]) for one in copies)


def test_randloras_bases_that_differ_by_site(peft_writes: Writes) -> None:
    bert = more_models.by_name("bert")
    folder = peft_writes(bert, RandLoraConfig(target_modules=["query"], r=6)).folder
    held = tensors(folder)
    key = next(key for key in held if key.endswith("layer.1.attention.self.query.randlora_B"))
    held[key] = held[key] + 1
    save_file(held, folder / "adapter_model.safetensors")
    with pytest.raises(trimtab.AdapterMismatch, match="is not what the other sites have"):
        trimtab.load(bert.model(), folder)


@pytest.mark.parametrize("vectors", [12, 300])
def test_vb_lora_saved_by_what_is_chosen(vectors: int, peft_writes: Writes, tmp_path: Path) -> None:
    """The chosen vectors and all but one of their weights, instead of the logits."""
    bert = more_models.by_name("bert")
    config = VBLoRAConfig(
        target_modules=["query", "dense"],
        num_vectors=vectors,
        vector_length=32,
        topk=3,
        save_only_topk_weights=True,
    )
    theirs = peft_writes(bert, config)
    assert any(key.endswith("_topk_indices") for key in tensors(theirs.folder))
    model = loaded(theirs.folder, bert)
    logits = cases.logits(model, bert.batch())
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-5, atol=1e-5)
    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    assert not any("_topk_" in key for key in tensors(ours))
    there = cases.logits(by_peft(ours, bert), bert.batch())
    torch.testing.assert_close(there, theirs.logits, rtol=1e-5, atol=1e-5)


BROKEN: dict[str, Any] = {
    "beyond the bank": ("_indices", lambda t: t + 250, "do not fit 12 vectors"),
    "too few weights": ("_weights", lambda t: t[..., :0], "do not fit 12 vectors"),
    "no indices": ("_indices", lambda t: None, "stands without the vectors"),
}


@pytest.mark.parametrize(("ending", "change", "match"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_choice(ending: str, change: Any, match: str, peft_writes: Writes) -> None:
    bert = more_models.by_name("bert")
    config = VBLoRAConfig(target_modules=["query"], save_only_topk_weights=True, **BANK)
    folder = peft_writes(bert, config).folder
    held = tensors(folder)
    key = next(key for key in held if key.endswith(f"_topk{ending}"))
    changed = change(held.pop(key))
    save_file(held if changed is None else {**held, key: changed.contiguous()}, _file(folder))
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(bert.model(), folder)


def _file(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_uniloras_indices_that_are_saved(name: str, peft_writes: Writes, tmp_path: Path) -> None:
    """Read as they are; written only where the seed would not give them again."""
    architecture = more_models.by_name(name)
    targets = {"bert": ["query", "dense"], "gpt2": ["c_attn"], "llama": "all-linear"}[name]
    config = UniLoraConfig(target_modules=targets, save_indices=True, **VECTOR)
    theirs = peft_writes(architecture, config)
    there = load_file(_file(theirs.folder))
    left = trimtab.save(loaded(theirs.folder, architecture), tmp_path / "left", format="peft")
    assert tensors(left).keys() == {"base_model.unilora_theta_d"}

    path = theirs.folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "proj_seed": 5}))
    model = loaded(theirs.folder, architecture)
    torch.testing.assert_close(
        cases.logits(model, architecture.batch()), theirs.logits, rtol=1e-5, atol=1e-5
    )
    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    assert tensors(ours).keys() == there.keys()
    for key, tensor in tensors(ours).items():
        assert torch.equal(tensor, there[key])
    again = by_peft(ours, architecture)
    torch.testing.assert_close(
        cases.logits(again, architecture.batch()), theirs.logits, rtol=1e-5, atol=1e-5
    )


def test_what_is_hashed_is_written_with_its_indices(tmp_path: Path) -> None:
    bert = more_models.by_name("bert")
    model = bert.model()
    adapter = trimtab.attach(model, trimtab.Shared(length=50, hashed=True), "query")
    cases.perturb(adapter)
    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    assert any("unilora_indices" in key for key in tensors(ours))
    expected = cases.logits(model, bert.batch())
    for other in (by_peft(ours, bert), loaded(ours, bert)):
        torch.testing.assert_close(
            cases.logits(other, bert.batch()), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("leaf", "change", "match"),
    [
        ("scales_A", lambda t: 2 * t, "is not 1 / √"),
        ("scales_B", lambda t: t[:1], "is not 1 / √"),
        ("indices_A", lambda t: t + 50, "beyond its theta_d_length=50"),
    ],
)
def test_broken_indices(leaf: str, change: Any, match: str, peft_writes: Writes) -> None:
    bert = more_models.by_name("bert")
    config = UniLoraConfig(target_modules=["query"], save_indices=True, **VECTOR)
    folder = peft_writes(bert, config).folder
    held = tensors(folder)
    key = next(key for key in held if key.endswith(leaf))
    save_file({**held, key: change(held[key])}, _file(folder))
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.load(bert.model(), folder)


REFUSED: dict[str, tuple[str, Any, str, str]] = {
    "lokr, whole at one dimension": ("waves", trimtab.LoKr(rank=9), "0", "needs a rank below"),
    "lokr, embedding": ("bert", trimtab.LoKr(), "word_embeddings", "holds no lokr there"),
    "lokr, stored the other way": ("gpt2", trimtab.LoKr(), "c_attn", "holds no lokr there"),
    "vb-lora, cut vectors": ("bert", trimtab.VBLoRA(), "query", "vector_length=256 divides"),
    "delora, stored the other way": ("gpt2", trimtab.DeLoRA(), "c_attn", "holds no delora there"),
    "randlora, embedding": ("bert", trimtab.RandLoRA(), "word_embeddings", "holds no randlora"),
}


@pytest.mark.parametrize(("name", "method", "to", "match"), REFUSED.values(), ids=list(REFUSED))
def test_what_their_files_cannot_hold(
    name: str, method: Any, to: str, match: str, tmp_path: Path
) -> None:
    model = by_name(name).model()
    trimtab.attach(model, method, to)
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


def reflecting() -> nn.Module:
    return nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")


@pytest.mark.parametrize(
    ("make", "method", "match"),
    [
        (reflecting, trimtab.HiRA(), "pads by zeros, and this convolution by 'reflect'"),
        (reflecting, trimtab.LoKr(), "pads by zeros, and this convolution by 'reflect'"),
        (
            lambda: BartScaledWordEmbedding(12, 8, 1, embed_scale=3.0),
            trimtab.HiRA(),
            "leaves out the scale of this embedding",
        ),
    ],
)
def test_modules_whose_law_is_another_there(
    make: Any, method: Any, match: str, tmp_path: Path
) -> None:
    model = nn.Sequential(make())
    trimtab.attach(model, method, "0")
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(model, tmp_path / "new", format="peft")


def test_another_law_is_not_read(peft_writes: Writes) -> None:
    """Their Kronecker product at a convolution of one dimension, with a whole second factor."""
    folder = peft_writes(WAVES, LoKrConfig(target_modules=["0"], r=30)).folder
    with pytest.raises(trimtab.AdapterMismatch, match=r"LOKR at .* is another law than lokr"):
        trimtab.load(WAVES.model(), folder)


@pytest.mark.parametrize("field", ["rank_dropout", "module_dropout"])
def test_lokrs_own_dropouts_are_refused(field: str, peft_writes: Writes) -> None:
    bert = more_models.by_name("bert")
    config = LoKrConfig(target_modules=["query"], r=2, **{field: 0.5})
    folder = peft_writes(bert, config).folder
    with pytest.raises(trimtab.InputError, match=f"{field}=0.5 has no equal in lokr"):
        trimtab.load(bert.model(), folder)
