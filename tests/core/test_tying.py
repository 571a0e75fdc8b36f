"""A host shares its base's parameters: tying, resizing, saving and moving stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import nn

import trimtab

TIED = {"gpt2": ("transformer.wte", "lm_head"), "t5": ("shared", "lm_head")}


def tied(model: Any, name: str) -> bool:
    one, other = (model.get_submodule(path) for path in TIED[name])
    return one.weight is other.weight and one.weight.data_ptr() == other.weight.data_ptr()


@pytest.mark.parametrize("target", ["all-linear", "head"])
@pytest.mark.parametrize("name", TIED)
def test_tied_embeddings_stay_tied(name: str, target: str) -> None:
    model: Any = cases.by_name(name).model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert tied(model, name)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), target))
    adapted = cases.logits(model, cases.by_name(name).batch())
    assert tied(model, name)
    model.tie_weights()
    assert tied(model, name)
    assert torch.equal(cases.logits(model, cases.by_name(name).batch()), adapted)
    model.to(torch.float64).to(torch.float32)
    assert tied(model, name)
    trimtab.detach(model)
    assert tied(model, name)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_resizing_after_attaching_to_attention(name: str) -> None:
    architecture = cases.by_name(name)
    model: Any = architecture.model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), "attention"))
    before = cases.logits(model, architecture.batch())
    model.resize_token_embeddings(cases.VOCAB + 7, mean_resizing=False)
    batch = architecture.batch()
    after = cases.logits(model, batch)
    torch.testing.assert_close(after[..., : before.shape[-1]], before)
    batch["input_ids"][0, 0] = cases.VOCAB + 5
    cases.assert_differs(cases.logits(model, batch), after)
    trimtab.merge(model)
    trimtab.unmerge(model)
    trimtab.detach(model)


def test_resizing_an_adapted_head_is_noticed() -> None:
    """transformers refuses it by itself; whoever puts a new head there meets our error."""
    model: Any = cases.by_name("llama").model()
    trimtab.attach(model, trimtab.LoRA(), "lm_head")
    with pytest.raises(TypeError, match="language model head is of type"):
        model.resize_token_embeddings(cases.VOCAB + 7, mean_resizing=False)
    model.set_output_embeddings(nn.Linear(32, cases.VOCAB + 7))
    for verb in (trimtab.merge, trimtab.detach, trimtab.summary, trimtab.parameters):
        with pytest.raises(trimtab.StateError, match=r"'lm_head', of adapter 'default', was repl"):
            verb(model)


def test_resizing_under_full_fine_tuning_is_noticed() -> None:
    model: Any = cases.by_name("llama").model()
    trimtab.attach(model, trimtab.Full())
    model.resize_token_embeddings(cases.VOCAB + 7, mean_resizing=False)
    with pytest.raises(trimtab.StateError, match=r"'lm_head.weight', of adapter 'default', was"):
        trimtab.activate(model, None)


def loaded(model: Any, folder: Path) -> Any:
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_save_pretrained_of_an_attached_model(
    architecture: cases.Architecture, tmp_path: Path
) -> None:
    """It holds the base under the base's names: a plain model that loads it is the base."""
    model: Any = architecture.model()
    base, batch = cases.state(model), architecture.batch()
    outputs = cases.logits(model, batch)
    cases.perturb(trimtab.attach(model, trimtab.LoRA()))
    held = model.state_dict()
    assert [name for name in held if ".deltas." not in name] == list(base)
    assert all(torch.equal(held[name], tensor) for name, tensor in base.items())
    model.save_pretrained(tmp_path)
    assert torch.equal(cases.logits(loaded(model, tmp_path), batch), outputs)


@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_save_pretrained_of_a_merged_model(
    architecture: cases.Architecture, tmp_path: Path
) -> None:
    from safetensors import safe_open

    model: Any = architecture.model()
    model.save_pretrained(tmp_path / "base")
    cases.perturb(trimtab.attach(model, trimtab.LoRA()))
    trimtab.merge(model)
    merged = cases.logits(model, architecture.batch())
    model.save_pretrained(tmp_path / "merged")
    keys = []
    for folder in ("base", "merged"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            keys.append(sorted(file.keys()))
    assert keys[0] == keys[1]
    assert torch.equal(
        cases.logits(loaded(model, tmp_path / "merged"), architecture.batch()), merged
    )


@cases.pairs()
def test_state_dict_round_trip(method: Any, architecture: cases.Architecture) -> None:
    """`torch.save(model.state_dict())` holds the deltas; a model with the same adapter loads it."""
    model, other, batch = architecture.model(), architecture.model(), architecture.batch()
    cases.perturb(cases.attach(model, method))
    cases.attach(other, method)
    cases.assert_differs(cases.logits(other, batch), cases.logits(model, batch))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(cases.logits(other, batch), cases.logits(model, batch))


def test_a_strange_key_is_still_refused() -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, trimtab.LoRA())
    state = model.state_dict()
    site = "bert.pooler.dense"
    for strange in ("deltas.default.lora.C", "deltas.other.lora.A", "wieght"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict({**state, f"{site}.{strange}": torch.zeros(1)})
    del state[f"{site}.deltas.default.lora.A"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


@cases.pairs()
def test_the_base_keeps_its_names(method: Any, architecture: cases.Architecture) -> None:
    model = architecture.model()
    before = dict(model.named_parameters())
    cases.attach(model, method)
    after = {name: p for name, p in model.named_parameters() if ".deltas." not in f".{name}"}
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())


@pytest.mark.parametrize("method", [trimtab.Full(), trimtab.Head()], ids=lambda m: m.name)
def test_a_selection_follows_a_move(method: Any) -> None:
    model, batch = cases.by_name("bert").model(), cases.by_name("bert").batch()
    cases.perturb(trimtab.attach(model, method))
    model.to(torch.bfloat16)
    trained = cases.logits(model, batch)
    trimtab.activate(model, None)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    plain = cases.by_name("bert").model().to(torch.bfloat16)
    assert torch.equal(cases.logits(model, batch), cases.logits(plain, batch))
    trimtab.activate(model, "default")
    assert torch.equal(cases.logits(model, batch), trained)
