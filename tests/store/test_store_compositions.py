"""Compositions: what is loaded acts as what was saved, or the model stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

import trimtab
from trimtab.core.adapter import carries, record
from trimtab.core.compose import Composition

BERT = cases.by_name("bert")
ROUTE = ["a", "b"]
KINDS: list[tuple[Composition, dict[str, Any]]] = [
    (trimtab.Stack("b", "a"), {}),
    (trimtab.Mix(a=0.7, b=-0.2), {}),
    (trimtab.Route("a", "b"), {"route": ROUTE}),
    (trimtab.Fuse("a", "b", by="f"), {}),
    (trimtab.Stack("c", trimtab.Fuse("a", "b", by="f")), {}),
    (trimtab.Stack(trimtab.Route("a", "b"), "p", "x", "s"), {"route": ROUTE}),
]


def adapted() -> Any:
    """A model with adapters of every kind."""
    model = BERT.model()
    for name, method in {
        "a": trimtab.LoRA(rank=2),
        "b": trimtab.LoRA(rank=3),
        "c": trimtab.IA3(),
        "p": trimtab.PromptTuning(length=3),
        "x": trimtab.PrefixTuning(length=2),
        "s": trimtab.Side(),
        "f": trimtab.Fusion(over=("a", "b")),
    }.items():
        cases.perturb(trimtab.attach(model, method, name=name), seed=ord(name))
    return model


@pytest.mark.parametrize(("composition", "facts"), KINDS, ids=lambda k: str(k)[:40])
def test_a_loaded_composition_is_the_saved_one(
    composition: Composition, facts: dict[str, Any], tmp_path: Path
) -> None:
    model, batch = adapted(), BERT.batch()
    trimtab.activate(model, composition)
    expected = cases.logits(model, batch | facts)
    assert trimtab.save(model, tmp_path / "both", name=composition) == tmp_path / "both"
    fresh = BERT.model()
    before = cases.state(fresh)
    loaded = trimtab.load(fresh, tmp_path / "both")
    assert record(fresh).switch.composition == composition
    assert torch.equal(cases.logits(fresh, batch | facts), expected)
    assert not any(p.requires_grad for p in fresh.parameters())
    for adapter in reversed(loaded):
        trimtab.detach(fresh, adapter.name)
    cases.assert_same_state(fresh, before)


def test_trainable(tmp_path: Path) -> None:
    trimtab.save(adapted(), tmp_path, name=trimtab.Fuse("a", "b", by="f"))
    fresh = BERT.model()
    a, b, f = trimtab.load(fresh, tmp_path, trainable=True)
    assert (a.name, b.name, f.name) == ("a", "b", "f")
    assert {id(p) for p in trimtab.parameters(fresh)} == {id(p) for p in f.parameters()}
    trimtab.activate(fresh, trimtab.Stack("a", "b"))
    assert len(trimtab.parameters(fresh)) == len(a.parameters()) + len(b.parameters())


def test_the_files(tmp_path: Path) -> None:
    model, stack = adapted(), trimtab.Stack("a", "b")
    trimtab.save(model, tmp_path, name="a")
    trimtab.save(model, tmp_path, name=stack)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "composition.json"]
    data = json.loads((tmp_path / "composition.json").read_text())
    assert data == {"format": "trimtab", "version": 1, "composition": {"stack": ["a", "b"]}}
    trimtab.load(BERT.model(), tmp_path / "b", name="other")  # each is an adapter's folder, too
    trimtab.save(model, tmp_path, name="c")
    assert trimtab.load(BERT.model(), tmp_path).name == "c"


def _write(folder: Path, composition: Any, **more: Any) -> None:
    data = {"format": "trimtab", "version": 1, "composition": composition, **more}
    (folder / "composition.json").write_text(json.dumps(data))


def _truncated(folder: Path) -> None:
    path = folder / "b" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "json": (lambda f: (f / "composition.json").write_text("{"), "cannot be read as JSON"),
    "version": (lambda f: _write(f, {"stack": ["a"]}, version=2), "version 2"),
    "format": (lambda f: _write(f, {"stack": ["a"]}, format="x"), "not in Trimtab's format"),
    "kind": (lambda f: _write(f, {"sum": ["a", "b"]}), "no composition of adapters"),
    "empty": (lambda f: _write(f, {"stack": []}), "names no adapter"),
    "none": (lambda f: _write(f, None), "names no adapter"),
    "outside": (lambda f: _write(f, {"stack": ["../a", "b"]}), "no name of an adapter"),
    "number": (lambda f: _write(f, {"mix": {"a": "much"}}), "a number for each"),
    "twice": (lambda f: _write(f, {"stack": ["a", "a"]}), "acts once"),
    "missing": (lambda f: shutil.rmtree(f / "b"), "'b'.* is missing"),
    "truncated": (_truncated, "no whole safetensors"),
    "part": (lambda f: _write(f, {"stack": ["f", "a", "b"]}), "no adapter is called"),
    "by": (lambda f: _write(f, {"fuse": ["a"], "by": "b"}), "combines nothing"),
}


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carrying"])
@pytest.mark.parametrize("kind", BROKEN)
def test_after_an_error_the_model_is_as_it_was(kind: str, carried: bool, tmp_path: Path) -> None:
    trimtab.save(adapted(), tmp_path, name=trimtab.Fuse("a", "b", by="f"))
    fresh, batch = BERT.model(), BERT.batch()
    if carried:
        cases.perturb(trimtab.attach(fresh, trimtab.LoRA(), name="own"))
        trimtab.activate(fresh, trimtab.Mix(own=0.5))
    before, outputs = cases.state(fresh), cases.logits(fresh, batch)
    trained = {n for n, p in fresh.named_parameters() if p.requires_grad}
    spoil, message = BROKEN[kind]
    spoil(tmp_path)
    with pytest.raises(trimtab.TrimtabError, match=message):
        trimtab.load(fresh, tmp_path)
    cases.assert_same_state(fresh, before)
    assert carries(fresh) == carried
    assert torch.equal(cases.logits(fresh, batch), outputs)
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == trained
    if carried:
        assert record(fresh).switch.composition == trimtab.Mix(own=0.5)


def test_a_name_that_is_taken_and_another_base(tmp_path: Path) -> None:
    trimtab.save(adapted(), tmp_path, name=trimtab.Stack("a", "b"))
    model = BERT.model()
    trimtab.attach(model, trimtab.IA3(), name="b")
    with pytest.raises(trimtab.InputError, match="already carries an adapter 'b'"):
        trimtab.load(model, tmp_path)
    assert list(record(model).adapters) == ["b"]
    assert record(model).switch.composition == "b"
    other = BERT.model()
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(trimtab.AdapterMismatch):
        trimtab.load(other, tmp_path)
    assert not carries(other)
    trimtab.load(other, tmp_path, force=True)


def test_what_saving_refuses(tmp_path: Path) -> None:
    model = adapted()
    stack = trimtab.Stack("a", "b")
    with pytest.raises(trimtab.InputError, match="own format"):
        trimtab.save(model, tmp_path, name=stack, format="peft")
    with pytest.raises(trimtab.InputError, match="no adapter is called 'z'"):
        trimtab.save(model, tmp_path, name=trimtab.Stack("a", "z"))
    with pytest.raises(trimtab.InputError, match="'f' combines 'a'"):
        trimtab.save(model, tmp_path, name=trimtab.Stack("f", "c"))
    with pytest.raises(trimtab.InputError, match="names no adapter"):
        trimtab.save(model, tmp_path, name=trimtab.Stack())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(trimtab.InputError, match="is a file"):
        trimtab.save(model, tmp_path / "file", name=stack)
    trimtab.save(model, tmp_path / "both", name=stack)
    with pytest.raises(trimtab.InputError, match="leave `name` out"):
        trimtab.load(BERT.model(), tmp_path / "both", name="a")
    trimtab.save(model, tmp_path / "f", name="f")
    with pytest.raises(trimtab.InputError, match="no adapter is called 'a'"):
        trimtab.load(BERT.model(), tmp_path / "f")
