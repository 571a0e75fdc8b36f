"""Law 9: over a quantised base a method is what it is over the plain base with the same values; it
trains, and leaves every code as it was."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.adapt import detach, merge, unmerge
from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.core.method import Method
from trimtab.core.walk import shapes
from trimtab.quant import FORMATS, dequantise, quantise
from trimtab.store.verbs import load, save
from trimtab.testing.architectures import ARCHITECTURES, Architecture
from trimtab.testing.laws.merging import affine
from trimtab.testing.layers import Layer
from trimtab.testing.trial import NotHere, Trial, assert_near, assert_same, ensure, gradients

ROUNDS_ITS_INPUT = {"int8": 0.1}
"""At evaluation these formats round the input too, and then compute no linear map: how far off."""


@dataclass(frozen=True)
class Quantised:
    """Makes an architecture's model in a format; `plain` makes it with the same values again."""

    architecture: Architecture
    to: str
    plain: bool = False

    def __call__(self) -> nn.Module:
        try:
            model = quantise(self.architecture.model(), self.to)
        except InputError as error:  # no library, or no map of which it makes codes
            raise NotHere(str(error)) from None
        return dequantise(model) if self.plain else model


def quantised(architecture: Architecture, to: str) -> Architecture:
    """The architecture, its maps in this format."""
    return dataclasses.replace(architecture, make=Quantised(architecture, to))


def over_base(place: Any, to: str | None) -> Any:
    """The architecture or layer as a method asks for it that acts on maps in one format."""
    if to is None or isinstance(getattr(place, "make", None), Quantised):
        return place
    if isinstance(place, Layer):
        return dataclasses.replace(place, model=quantised(place.model, to))
    return quantised(place, to)


QUANTISED = tuple(
    dataclasses.replace(quantised(ARCHITECTURES[0], to), name=to) for to in sorted(FORMATS)
)


def over_a_quantised_base(method: Method, architecture: Architecture) -> None:
    """Against the same adapter over the plain base: the outputs, saved and loaded, every gradient,
    merged and unmerged; on the way no code changes."""
    trial = Trial(method, architecture)
    before = bits(trial.model)
    adapter = trial.perturbed()
    tolerance = ROUNDS_ITS_INPUT.get(architecture.name, 1e-3)
    outputs = trial.outputs()  # before training: after it a library may give no gradient
    with tempfile.TemporaryDirectory() as folder:
        save(trial.model, folder, name="default")
        other = Trial(method, architecture)
        load(other.model, folder)
        assert_same(other.outputs(), outputs, "the outputs of the loaded adapter")
    ours = _gradients(trial)
    ensure(ours, "nothing has a gradient")
    if method.base is None:
        _like_plain(_twin(method, architecture, adapter), outputs, ours, tolerance)
    assert_same(trial.outputs(), outputs, "the outputs after a step's gradients")
    if affine(method):
        _merges(trial, tolerance)
    detach(trial.model, "default")
    _ensure_same(before, bits(trial.model))


def _twin(method: Method, architecture: Architecture, adapter: Adapter) -> Trial:
    """The same adapter over the plain base."""
    make: Any = architecture.make
    twin = Trial(
        method, dataclasses.replace(architecture, make=dataclasses.replace(make, plain=True))
    )
    held = twin.perturbed().tensors()
    with torch.no_grad():
        for name, tensor in adapter.tensors().items():
            held[name].copy_(tensor)
    return twin


def _like_plain(plain: Trial, outputs: Tensor, ours: dict[str, Tensor], tolerance: float) -> None:
    assert_near(outputs, plain.outputs(), "the outputs, against the plain base's", tolerance)
    theirs = _gradients(plain)
    ensure(ours.keys() == theirs.keys(), f"no gradient: {sorted(theirs.keys() - ours.keys())}")
    for name, gradient in theirs.items():
        assert_near(ours[name], gradient, f"the gradient of {name}", 1e-3)


def _gradients(trial: Trial) -> dict[str, Tensor]:
    """The gradients of the batch, in training."""
    torch.manual_seed(0)  # for masks that a law draws
    trial.model.train()
    trial.loss().backward()
    trial.model.eval()
    found = gradients(trial.model)
    trial.model.zero_grad()
    return found


def _merges(trial: Trial, tolerance: float) -> None:
    """Never into codes; into plain maps that stand in their place."""
    outputs, codes = trial.outputs(), bits(trial.model)
    try:
        merge(trial.model)
    except InputError as error:
        ensure("dequantise=True" in str(error), f"merging is refused without a way out: {error}")
    else:  # a change of biases or norms
        assert_near(trial.outputs(), outputs, "merged", 1e-3)
        unmerge(trial.model)
    assert_same(trial.outputs(), outputs, "the outputs after the merge into codes")
    merge(trial.model, dequantise=True)
    ensure(not shapes(trial.model), "merged, a map still has codes")
    assert_near(trial.outputs(), outputs, "merged into plain maps", tolerance)
    unmerge(trial.model)
    assert_same(trial.outputs(), outputs, "the outputs after unmerging")
    _ensure_same(codes, bits(trial.model))


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all that the model's state holds; of a tensor that is made of others, those."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            found[name] = tensor.clone()
        else:
            found |= {f"{name}.{part}": getattr(tensor, part).clone() for part in inner()[0]}
    return found


def _ensure_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    ensure(list(before) == list(after), "the base's state has other keys than before")
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    ensure(changed == [], f"{changed} of the base are not what they were")
