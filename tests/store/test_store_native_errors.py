"""Native files that do not fit or are broken: an error by name, and the model as it was."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import carries

BERT = cases.by_name("bert")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens within, the model is afterwards as it was."""
    state, shown, output = cases.state(model), str(model), cases.logits(model, BERT.batch())
    carried, trained = carries(model), [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    yield
    cases.assert_same_state(model, state)
    assert str(model) == shown
    assert torch.equal(cases.logits(model, BERT.batch()), output)
    assert carries(model) == carried
    assert [p.requires_grad for p in model.parameters()] == trained
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


@pytest.fixture(params=["lora", "full"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved adapter: one with sites and a whole head, or one of the base's own parameters."""
    model = BERT.model()
    if request.param == "lora":
        adapter = trimtab.attach(model, trimtab.LoRA(), "query", train=["classifier"])
    else:
        adapter = trimtab.attach(model, trimtab.Full())
    cases.perturb(adapter)
    return trimtab.save(model, tmp_path / "saved")


def refused(folder: Path, match: str, model: nn.Module | None = None, **options: Any) -> None:
    model = BERT.model() if model is None else model
    with untouched(model), pytest.raises(trimtab.InputError, match=match):
        trimtab.load(model, folder, **options)


def edit_json(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "adapter.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> str:
    """Edit the tensors; returns the name of the first of them."""
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    first = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    edit(tensors)
    save_file(tensors, path)
    sign(folder)
    return first


def sign(folder: Path) -> None:
    """Let `adapter.json` belong to the tensors as they are now."""
    digest = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    edit_json(folder, lambda config: config.update(digest=digest))


def test_files_of_two_saves(folder: Path, tmp_path: Path) -> None:
    """A crash between the two files, or a copy of one of them, is noticed."""
    model = BERT.model()
    method = trimtab.Full() if "full" in (folder / "adapter.json").read_text() else trimtab.LoRA()
    train = [] if isinstance(method, trimtab.Full) else ["classifier"]
    to = None if isinstance(method, trimtab.Full) else "query"
    cases.perturb(trimtab.attach(model, method, to, train=train), seed=3)
    other = trimtab.save(model, tmp_path / "other")
    (folder / "adapter.safetensors").write_bytes((other / "adapter.safetensors").read_bytes())
    refused(folder, r"is not the file that adapter\.json was written for")


def another_base() -> nn.Module:
    model = BERT.model()
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.mul_(1.1)
    return model


def test_another_base_by_values_is_refused_unless_forced(tmp_path: Path) -> None:
    source = BERT.model()
    cases.perturb(trimtab.attach(source, trimtab.LoRA()))
    trimtab.save(source, tmp_path)
    model = another_base()
    refused(tmp_path, r"another base.*first 'bert\.encoder\.layer\.0\.attention", model)
    plain = cases.logits(model, BERT.batch())
    trimtab.load(model, tmp_path, force=True)
    cases.assert_differs(cases.logits(model, BERT.batch()), plain)


def test_another_base_for_a_selection_is_told_by_what_it_does_not_bring(tmp_path: Path) -> None:
    source = BERT.model()
    cases.perturb(trimtab.attach(source, trimtab.Head()))
    trimtab.save(source, tmp_path)
    refused(tmp_path, "another base", another_base())
    trimtab.load(another_base(), tmp_path, force=True)


def test_a_base_of_other_shapes_is_refused_even_when_forced(folder: Path) -> None:
    wider = type(BERT.model())(copy.deepcopy(BERT.model().config))
    wider.config.intermediate_size = 48
    other = type(wider)(wider.config).eval()
    refused(folder, r"shape|values differ", other)
    smaller = copy.deepcopy(BERT.model().config)
    smaller.hidden_size = 16
    model = type(wider)(smaller).eval()
    refused(folder, "shape", model)
    refused(folder, "shape", model, force=True)


def test_a_base_of_other_layers_is_refused(folder: Path) -> None:
    config = copy.deepcopy(BERT.model().config)
    config.num_hidden_layers = 1
    refused(folder, "has not|belongs to no site", type(BERT.model())(config).eval())


def test_a_missing_tensor(folder: Path) -> None:
    first = edit_tensors(folder, lambda t: t.pop(next(k for k, v in t.items() if v.ndim == 2)))
    refused(folder, f"misses the tensor '{first}'")


def test_an_extra_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"bert.extra.lora.A": torch.ones(2)}))
    refused(folder, "'bert.extra.lora.A' that belongs to no site")


def test_a_misshapen_tensor(folder: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        first = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[first] = torch.cat([tensors[first], tensors[first]])

    first = edit_tensors(folder, widen)
    refused(folder, rf"'{first}' has shape \(\d+, \d+\), and must have \(\d+, \d+\)")


def test_a_tensor_of_integers(folder: Path) -> None:
    def truncate(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.int() for name, tensor in tensors.items()})

    edit_tensors(folder, truncate)
    refused(folder, "dtype torch.int32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(folder: Path, value: float) -> None:
    first = edit_tensors(folder, lambda t: [tensor.fill_(value) for tensor in t.values()])
    refused(folder, f"'{first}'.*not finite|not finite")


BROKEN_CONFIGURATIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer version": (lambda c: c.update(version=2), "version 2.*reads up to 1.*upgrade"),
    "version zero": (lambda c: c.update(version=0), "version"),
    "version of no number": (lambda c: c.update(version="1"), "'version'"),
    "version true": (lambda c: c.update(version=True), "'version'"),
    "another format": (lambda c: c.update(format="other"), "not in Trimtab's format"),
    "no methods": (lambda c: c.update(methods=[]), "methods"),
    "unknown method": (lambda c: c["methods"][0].update(method="lroa"), "'lroa'.*nearest"),
    "unknown hyper-parameter": (
        lambda c: c["methods"][0]["arguments"].update(rnak=3),
        "no hyper-parameter 'rnak'",
    ),
    "a path for a name": (lambda c: c.update(name="../x"), "name has letters.*'../x'"),
    "an empty name": (lambda c: c.update(name=""), "name has letters"),
    "a number for a name": (lambda c: c.update(name=7), "'name' must be a str"),
    "no base": (lambda c: c.pop("base"), "'base' must be a dict, and is missing"),
    "methods of no object": (lambda c: c.update(methods=["lora"]), "must be an object"),
    "sites of no names": (lambda c: c["methods"][0].update(sites=[1]), "'sites' must be names"),
    "a site that is a path": (lambda c: c["methods"][0].update(sites=["../x"]), "'../x'"),
    "no sites": (lambda c: c["methods"][0].update(sites=[]), "sites|belongs to no site"),
    "broken base": (
        lambda c: c["base"]["parameters"].update({"classifier.bias": 3}),
        "base parameter 'classifier.bias'",
    ),
}


@pytest.mark.parametrize(
    ("edit", "match"), BROKEN_CONFIGURATIONS.values(), ids=list(BROKEN_CONFIGURATIONS)
)
def test_a_broken_configuration(
    folder: Path, edit: Callable[[dict[str, Any]], object], match: str
) -> None:
    edit_json(folder, edit)
    refused(folder, match)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rank": 0},
        {"rank": "8"},
        {"rank": True},
        {"rank": 10**12},
        {"rank": 10**40},
        {"alpha": float("inf")},
        {"alpha": float("nan")},
        {"alpha": 10**400},
        {"dropout": 1.5},
        {"rslora": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("folder", ["lora"], indirect=True)
def test_a_hyper_parameter_out_of_range(folder: Path, arguments: dict[str, Any]) -> None:
    edit_json(folder, lambda c: c["methods"][0]["arguments"].update(arguments))
    assert json.loads((folder / "adapter.json").read_text())["methods"][0]["method"] == "lora"
    refused(folder, f"{next(iter(arguments))}|shape|no number of JSON")


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "", "[" * 100_000, '{"a": 1}}'])
def test_json_that_is_no_object_or_broken(folder: Path, text: str) -> None:
    (folder / "adapter.json").write_text(text)
    refused(folder, r"adapter\.json (must hold a JSON object|cannot be read as JSON)")


def test_json_that_is_no_text(folder: Path) -> None:
    (folder / "adapter.json").write_bytes(b"\xff\xfe{}")
    refused(folder, r"adapter\.json cannot be read as JSON")


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -100])
def test_truncated_tensors(folder: Path, keep: int) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, r"adapter\.safetensors is no whole safetensors file")


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no adapter")
    (folder / "adapter.safetensors").unlink()
    refused(folder, r"adapter\.safetensors is missing")


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / "adapter.safetensors").unlink()
    (folder / "adapter.bin").write_bytes(pickle.dumps(Trap(trace)))
    refused(folder, "is missing.*adapter.bin is a pickle, which is never loaded")
    (folder / "adapter.bin").rename(folder / "adapter.safetensors")
    refused(folder, "no whole safetensors file")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "a.b", " ", "."])
def test_a_bad_name_given(folder: Path, name: str) -> None:
    refused(folder, "adapter's name has letters", name=name)


def test_a_name_that_is_taken(folder: Path) -> None:
    model = BERT.model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), "value"), seed=5)
    refused(folder, "already carries an adapter 'default'", model)


def test_a_refused_second_adapter_leaves_the_first_at_work(folder: Path) -> None:
    model = BERT.model()
    cases.perturb(trimtab.attach(model, trimtab.LoRA(), "value", name="first"), seed=5)
    first = edit_tensors(folder, lambda t: t.pop(next(k for k, v in t.items() if v.ndim == 2)))
    refused(folder, f"misses the tensor '{first}'", model)
    assert trimtab.parameters(model)
