"""Trimtab's own files: what is loaded is what was saved."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import pytest
import torch
from safetensors.torch import load_file

import trimtab
from trimtab.core.method import Method

BERT = cases.by_name("bert")


@cases.pairs()
def test_a_loaded_adapter_is_the_saved_one(
    method: Method, architecture: cases.Architecture, tmp_path: Path
) -> None:
    model, batch = architecture.model(), architecture.batch()
    base = cases.logits(model, batch)
    cases.perturb(cases.attach(model, method))
    adapted = cases.logits(model, batch)
    cases.assert_differs(adapted, base)
    trimtab.save(model, tmp_path)

    fresh = architecture.model()
    before, random = cases.state(fresh), torch.get_rng_state()
    adapter = trimtab.load(fresh, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(cases.logits(fresh, batch), adapted)
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    trimtab.detach(fresh)
    cases.assert_same_state(fresh, before)


def test_the_files_are_safetensors_and_json(tmp_path: Path) -> None:
    model = BERT.model()
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), "query", train=["classifier"])
    trimtab.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.json", "adapter.safetensors"}
    config = json.loads((tmp_path / "adapter.json").read_text())
    assert (config["format"], config["version"], config["name"]) == ("trimtab", 1, "default")
    assert config["base"]["class"] == "BertForSequenceClassification"
    tensors = load_file(tmp_path / "adapter.safetensors")
    assert tensors.keys() == adapter.tensors().keys()
    assert all(torch.equal(tensors[name], own) for name, own in adapter.tensors().items())


def test_ranks_by_plan_and_a_whole_head(tmp_path: Path) -> None:
    model, batch = BERT.model(), BERT.batch()
    plan = {"query": trimtab.LoRA(rank=3), "mlp": trimtab.LoRA(rank=5, alpha=3.0, dropout=0.1)}
    cases.perturb(trimtab.attach(model, plan, train=["classifier"]))
    trimtab.save(model, tmp_path)
    fresh = BERT.model()
    adapter = trimtab.load(fresh, tmp_path)
    assert set(adapter.entries) == set(trimtab.core.adapter.record(model).adapter(None).entries)
    assert torch.equal(cases.logits(fresh, batch), cases.logits(model, batch))


def test_two_adapters_are_saved_and_loaded_by_name(tmp_path: Path) -> None:
    model, batch = BERT.model(), BERT.batch()
    outputs = {}
    for seed, (name, method) in enumerate({"a": trimtab.LoRA(), "b": trimtab.IA3()}.items()):
        cases.perturb(trimtab.attach(model, method, name=name), seed=seed)
        outputs[name] = cases.logits(model, batch)
    with pytest.raises(trimtab.InputError, match="name one of the 2 adapters"):
        trimtab.save(model, tmp_path / "which")
    for name in outputs:
        trimtab.save(model, tmp_path / name, name=name)
    fresh = BERT.model()
    trimtab.load(fresh, tmp_path / "b")
    trimtab.load(fresh, tmp_path / "a")
    trimtab.load(fresh, tmp_path / "a", name="again")
    for active, name in (("a", "a"), ("b", "b"), ("again", "a")):
        trimtab.activate(fresh, active)
        assert torch.equal(cases.logits(fresh, batch), outputs[name])


def test_saved_while_merged(tmp_path: Path) -> None:
    """The adapter is written as it is, and the base as it was before merging."""
    model, batch = BERT.model(), BERT.batch()
    cases.perturb(trimtab.attach(model, trimtab.LoRA()))
    trimtab.save(model, tmp_path / "unmerged")
    trimtab.merge(model)
    trimtab.save(model, tmp_path / "merged")
    for name in ("adapter.json", "adapter.safetensors"):
        unmerged = (tmp_path / "unmerged" / name).read_bytes()
        assert (tmp_path / "merged" / name).read_bytes() == unmerged
    with pytest.raises(trimtab.StateError, match="unmerge"):
        trimtab.load(model, tmp_path / "merged", name="second")
    trimtab.unmerge(model)
    trimtab.load(model, tmp_path / "merged", name="second")
    fresh = BERT.model()
    trimtab.load(fresh, tmp_path / "merged")
    assert torch.equal(cases.logits(fresh, batch), cases.logits(model, batch))


@pytest.mark.parametrize("order", [("full", "head"), ("head", "full"), ("full", "lora")])
def test_selections_load_beside_each_other(order: tuple[str, str], tmp_path: Path) -> None:
    """Selected parameters are the base's own: loading one must not write into another's."""
    batch, outputs = BERT.batch(), {}
    for seed, name in enumerate(order):
        model = BERT.model()
        method = trimtab.core.registry.build(name, {})
        cases.perturb(trimtab.attach(model, method, name=name), seed=seed)
        outputs[name] = cases.logits(model, batch)
        trimtab.save(model, tmp_path / name)
    fresh = BERT.model()
    base = cases.state(fresh)
    for name in order:
        trimtab.load(fresh, tmp_path / name)
        assert torch.equal(cases.logits(fresh, batch), outputs[name])
    for name in order:
        trimtab.activate(fresh, name)
        assert torch.equal(cases.logits(fresh, batch), outputs[name])
    for name in order:
        trimtab.detach(fresh, name)
    cases.assert_same_state(fresh, base)


def test_an_inactive_selection_saves_its_own_values(tmp_path: Path) -> None:
    model, batch = BERT.model(), BERT.batch()
    cases.perturb(trimtab.attach(model, trimtab.Full()))
    adapted = cases.logits(model, batch)
    trimtab.activate(model, None)
    trimtab.save(model, tmp_path)
    fresh = BERT.model()
    trimtab.load(fresh, tmp_path)
    assert torch.equal(cases.logits(fresh, batch), adapted)


@pytest.mark.parametrize("method", [trimtab.LoRA(), trimtab.Head()], ids=["lora", "head"])
def test_loaded_to_train_on(method: Method, tmp_path: Path) -> None:
    model, batch = BERT.model(), BERT.batch()
    cases.perturb(trimtab.attach(model, method))
    trimtab.save(model, tmp_path)
    fresh = BERT.model()
    adapter = trimtab.load(fresh, tmp_path, trainable=True)
    cases.loss(fresh, batch).backward()
    own = {id(parameter) for parameter in adapter.parameters()}
    assert set(cases.gradients(fresh)) == {
        name for name, p in fresh.named_parameters() if id(p) in own
    }
    assert trimtab.parameters(fresh)


def test_saving_again_replaces_the_files(tmp_path: Path) -> None:
    model = BERT.model()
    adapter = trimtab.attach(model, trimtab.LoRA())
    trimtab.save(model, tmp_path)
    cases.perturb(adapter)
    trimtab.save(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fresh = BERT.model()
    trimtab.load(fresh, tmp_path)
    assert torch.equal(cases.logits(fresh, BERT.batch()), cases.logits(model, BERT.batch()))


def test_save_refuses_a_file_and_an_unknown_format(tmp_path: Path) -> None:
    model = BERT.model()
    with pytest.raises(trimtab.StateError, match="carries no adapter"):
        trimtab.save(model, tmp_path)
    trimtab.attach(model, trimtab.LoRA())
    (tmp_path / "file").touch()
    with pytest.raises(trimtab.InputError, match="is a file"):
        trimtab.save(model, tmp_path / "file")
    with pytest.raises(trimtab.InputError, match="not 'gguf'"):
        trimtab.save(model, tmp_path / "new", format="gguf")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("written", ["adapter.json", "adapter.safetensors"])
def test_a_failed_write_is_an_error_and_leaves_the_file_before(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BERT.model()
    trimtab.attach(model, trimtab.LoRA())
    trimtab.save(model, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    before = (tmp_path / written).read_bytes()
    trimtab.detach(model)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=2)))
    replace = trimtab.store.files.os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == written:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(trimtab.store.files.os, "replace", full)
    with pytest.raises(trimtab.TrimtabError, match=f"cannot write .*{written}.*No space left"):
        trimtab.save(model, tmp_path)
    assert (tmp_path / written).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == names
