"""Law 4: a saved adapter loaded into a fresh base gives identical outputs; what does not fit is
refused by name and leaves the model as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.core.adapter import carries
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Method
from trimtab.store.native import TENSORS
from trimtab.store.verbs import load, save
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    Trial,
    assert_near,
    assert_same,
    assert_same_state,
    ensure,
    state,
)


def saved_is_loaded(method: Method, architecture: Architecture) -> None:
    """The same outputs from a fresh base, in whichever order memory holds the parameters."""
    for by_columns in (False, True):
        trial = Trial(method, architecture)
        adapter = trial.perturbed()
        if by_columns:
            _by_columns(adapter.parameters())
        outputs = trial.outputs()
        with tempfile.TemporaryDirectory() as folder:
            save(trial.model, folder, name="default")
            other = Trial(method, architecture)
            numbers = torch.get_rng_state()
            loaded = _load(other.model, folder)
            ensure(torch.equal(torch.get_rng_state(), numbers), "loading drew random numbers")
        held, wanted = loaded.tensors(), adapter.tensors()
        ensure(held.keys() == wanted.keys(), "other tensors were loaded")
        for name, tensor in wanted.items():
            assert_same(held[name], tensor, name)
        if by_columns:  # sums run in another order
            assert_near(other.outputs(), outputs, "the outputs of the loaded adapter", 1e-5)
        else:
            assert_same(other.outputs(), outputs, "the outputs of the loaded adapter")
        ensure(not any(p.requires_grad for p in other.model.parameters()), "what is loaded trains")


def _by_columns(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T


def _load(model: Any, folder: str | Path) -> Any:
    try:
        return load(model, folder)
    except InputError as error:
        raise AssertionError(f"its own file is refused: {error}") from error


def misfits_are_refused(method: Method, architecture: Architecture) -> None:
    """Another base, or a missing, extra or misshapen tensor: an error that names it."""
    trial = Trial(method, architecture)
    adapter = trial.perturbed()
    base = Trial(method, architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = save(trial.model, folder, name="default") / TENSORS
        _other_base(method, architecture, path.parent, set(adapter.selected))
        tensors, whole = load_file(path), path.read_bytes()
        key = max(tensors, key=lambda name: tensors[name].numel())

        def broken(edit: Callable[[dict[str, Tensor]], object], named: str) -> None:
            edited = dict(tensors)
            edit(edited)
            save_file(edited, path)
            _refused(base, path.parent, named)

        broken(lambda held: held.pop(key), key)
        broken(lambda held: held.update({f"{key}x": tensors[key].clone()}), f"{key}x")
        larger = torch.zeros(*(size + 1 for size in tensors[key].shape))
        broken(lambda held: held.update({key: larger}), key)
        path.write_bytes(whole)
        _load(base.model, path.parent)
    assert_same(base.outputs(), trial.outputs(), "the outputs, loaded after the refusals")


def _other_base(
    method: Method, architecture: Architecture, folder: Path, replaced: set[str]
) -> None:
    other = Trial(method, architecture)
    moved = [
        (name, parameter)
        for name, parameter in other.model.named_parameters()
        if name not in replaced and ".deltas." not in name and parameter.is_floating_point()
    ]
    with torch.no_grad():
        for _, parameter in moved:
            parameter.add_(0.1)
    if moved:  # an adapter that brings every parameter along fits any base of the same shapes
        _refused(other, folder, "", [name for name, _ in moved])


def _refused(trial: Trial, folder: Path, named: str, one_of: list[str] | None = None) -> None:
    model = trial.model
    before, shown, carried = state(model), str(model), carries(model)
    asking, hooks = [p.requires_grad for p in model.parameters()], _hooks(model)
    try:
        load(model, folder)
    except AdapterMismatch as error:
        text = str(error)
        said = named in text if one_of is None else any(name in text for name in one_of)
        ensure(said, f"the error does not name {named or 'a parameter'}: {text}")
    else:
        raise AssertionError(f"a file that does not fit is loaded ({named or 'another base'})")
    assert_same_state(model, before)
    ensure(str(model) == shown, "the model has other modules after a file was refused")
    ensure(carries(model) == carried, "the model carries an adapter that was refused")
    ensure([p.requires_grad for p in model.parameters()] == asking, "other parameters train")
    ensure(_hooks(model) == hooks, "hooks are left on the model after a file was refused")


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
