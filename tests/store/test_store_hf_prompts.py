"""Prompts and prefixes in HF PEFT's files, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases
import peft
import pytest
import torch
from both_ways import by_peft, loaded
from peft import (
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trimtab

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
N = 3
TASKS = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "distilbert": "SEQ_CLS"} | {
    **dict.fromkeys(("gpt2", "llama", "qwen3"), "CAUSAL_LM"),
    **dict.fromkeys(("t5", "bart"), "SEQ_2_SEQ_LM"),
}
SIZES: dict[str, Any] = {"distilbert": {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}}
EVERY = [
    *((name, PromptTuningConfig, {"num_transformer_submodules": 1}) for name in TASKS),
    *((name, PromptEncoderConfig, {"num_transformer_submodules": 1}) for name in TASKS),
    *((name, PrefixTuningConfig, {}) for name in TASKS if name != "distilbert"),
    *(
        (name, MultitaskPromptTuningConfig, {"num_tasks": 3, "num_ranks": r} | more)
        for name, r, more in (
            ("bert", 1, {}),
            ("gpt2", 2, {}),
            ("llama", 3, {}),
            ("t5", 2, {"num_transformer_submodules": 1}),
            ("bart", 1, {"num_transformer_submodules": 1}),
        )
    ),
]


def facts(kind: Any) -> dict[str, Any]:
    """A task for each example, where prompts differ by task."""
    return {"task_ids": torch.tensor([2, 0])} if kind is MultitaskPromptTuningConfig else {}


def config_for(name: str, kind: Any, **more: Any) -> Any:
    return kind(task_type=TASKS[name], num_virtual_tokens=N, **SIZES.get(name, {}), **more)


def theirs(name: str, config: Any, folder: Path) -> nn.Module:
    model = peft.get_peft_model(cases.by_name(name).model(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


def outputs(name: str, model: nn.Module, **given: Any) -> Tensor:
    """Without the prompt's own positions, and what stands at padding."""
    batch = {**cases.by_name(name).batch(), **given}
    if TASKS[name] == "SEQ_2_SEQ_LM" and given:  # HF PEFT gives on no other input of the decoder
        return cases.logits(model, batch)
    labels = batch.pop("labels")
    if TASKS[name] == "SEQ_2_SEQ_LM":
        batch["decoder_input_ids"] = labels
    found = cases.logits(model, batch)
    if TASKS[name] == "CAUSAL_LM":
        real = batch["attention_mask"].bool()
        found = found[:, -real.shape[1] :][real]
    return found


@pytest.mark.parametrize(("name", "kind", "more"), EVERY, ids=lambda v: getattr(v, "__name__", v))
def test_there_and_back(name: str, kind: Any, more: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_for(name, kind, **more)
    given = facts(kind)
    expected = outputs(name, theirs(name, config, tmp_path / "theirs"), **given)
    model = loaded(tmp_path / "theirs", cases.by_name(name))
    cases.assert_differs(expected, outputs(name, cases.by_name(name).model()))
    torch.testing.assert_close(outputs(name, model, **given), expected, rtol=1e-5, atol=1e-5)

    ours = trimtab.save(model, tmp_path / "ours", format="peft")
    one, other = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("theirs", "ours"))
    assert one.keys() == other.keys()
    unused = kind is PrefixTuningConfig and TASKS[name] == "SEQ_2_SEQ_LM"  # by their decoders
    for key, tensor in one.items():
        assert (tensor.shape, tensor.dtype) == (other[key].shape, other[key].dtype)
        assert unused or torch.equal(tensor, other[key])
    mine, full = (
        json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs")
    )
    assert mine.keys() <= full.keys()
    same = ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_layers")
    for field in (*same, "num_attention_heads", "num_transformer_submodules"):
        assert mine[field] == full[field], field
    there = by_peft(ours, cases.by_name(name))
    torch.testing.assert_close(outputs(name, there, **given), expected, rtol=1e-5, atol=1e-5)
    again = loaded(ours, cases.by_name(name))
    assert torch.equal(outputs(name, again, **given), outputs(name, model, **given))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoders_half_is_not_used(name: str, tmp_path: Path) -> None:
    config = config_for(name, PromptTuningConfig)
    expected = outputs(name, theirs(name, config, tmp_path))
    assert len(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]) == 2 * N
    model = loaded(tmp_path, cases.by_name(name))
    torch.testing.assert_close(outputs(name, model), expected, rtol=1e-5, atol=1e-5)


def test_a_decoders_half_by_task_is_refused(tmp_path: Path) -> None:
    """HF PEFT puts it before the decoder's input in a forward pass, and not when it generates."""
    theirs("t5", config_for("t5", MultitaskPromptTuningConfig, num_tasks=3), tmp_path)
    with pytest.raises(trimtab.InputError, match="num_transformer_submodules=1"):
        trimtab.load(cases.by_name("t5").model(), tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        trimtab.PTuning(length=N, encoder="mlp", hidden=8),
        trimtab.PTuning(length=N, encoder="lstm", hidden=8),
        trimtab.PrefixTuning(length=N, projection=8),
    ],
    ids=["mlp", "lstm", "projection"],
)
def test_what_makes_a_prompt_is_left_out(method: Any, tmp_path: Path) -> None:
    llama = cases.by_name("llama")
    model = llama.model()
    cases.perturb(trimtab.attach(model, method))
    folder = trimtab.save(model, tmp_path, format="peft")
    expected = outputs("llama", model)
    for other in (by_peft(folder, llama), loaded(folder, llama)):
        torch.testing.assert_close(outputs("llama", other), expected, rtol=1e-5, atol=1e-5)


def attached(name: str, method: Any, to: Any = None) -> nn.Module:
    model = cases.by_name(name).model()
    cases.perturb(trimtab.attach(model, method, to))
    return model


@pytest.mark.parametrize(
    ("name", "method", "to", "match"),
    [
        ("bert", trimtab.PromptTuning(length=N), None, "keep must be True"),
        ("llama", trimtab.PromptTuning(length=N, keep=True), None, "keep must be False"),
        ("t5", trimtab.PromptTuning(length=N), "decoder-input", "of a decoder's input"),
        ("t5", trimtab.PrefixTuning(length=N), None, "all of its decoder's"),
        ("llama", trimtab.PrefixTuning(length=N), "*layers.0*", "all self-attentions"),
        ("t5", trimtab.PrefixTuning(length=N), "re:decoder.*SelfAttention", "of another layer"),
        ("vit", trimtab.PrefixTuning(length=N), None, "has none"),
    ],
    ids=["head", "keep", "decoder", "encoder", "one layer", "dealt twice", "no task"],
)
def test_what_their_files_cannot_hold(
    name: str, method: Any, to: Any, match: str, tmp_path: Path
) -> None:
    with pytest.raises(trimtab.InputError, match=match):
        trimtab.save(attached(name, method, to), tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


def test_a_new_prompt_says_where_it_starts() -> None:
    config = config_for("llama", PromptTuningConfig)
    with pytest.raises(trimtab.InputError, match=r"attached as trimtab\.PromptTuning"):
        trimtab.attach(cases.by_name("llama").model(), config)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prefix_task_cols": None}, r"misses \['prefix_task_cols'\]"),
        ({"prefix_task_cols": torch.zeros(4, N, 1)}, "has shape"),
        ({"prefix_task_rows": torch.zeros(3, 2, 32)}, "has shape"),
    ],
    ids=["missing", "tasks", "rank"],
)
def test_what_tasks_have_is_checked(
    change: dict[str, Tensor | None], match: str, tmp_path: Path
) -> None:
    theirs("llama", config_for("llama", MultitaskPromptTuningConfig, num_tasks=3), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    changed = {**load_file(path), **change}
    save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(trimtab.AdapterMismatch, match=match):
        trimtab.load(cases.by_name("llama").model(), tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt_embeddings": torch.zeros(N + 1, 32)}, "has 4 rows, and must have 3"),
        ({"prompt_embeddings": torch.zeros(N, 31)}, "has shape"),
        ({"prompt_embeddings": torch.zeros(N)}, "a matrix"),
        ({"other": torch.zeros(N)}, "'other' that belongs nowhere"),
    ],
    ids=["rows", "width", "vector", "extra"],
)
def test_tensors_are_checked(change: dict[str, Tensor], match: str, tmp_path: Path) -> None:
    theirs("llama", config_for("llama", PromptTuningConfig), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(path), **change}, path)
    with pytest.raises(trimtab.AdapterMismatch, match=match):
        trimtab.load(cases.by_name("llama").model(), tmp_path)
