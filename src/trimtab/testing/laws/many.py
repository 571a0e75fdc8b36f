"""Law 7: several adapters live on one base, each as if alone; a batch may use one an example;
removing one leaves the rest bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab import LoRA
from trimtab.adapt import activate, attach, detach, unmerge
from trimtab.core.adapter import record
from trimtab.core.call import given
from trimtab.core.compose import Route, Stack
from trimtab.core.errors import InputError
from trimtab.core.method import Method
from trimtab.core.training import parameters
from trimtab.testing.architectures import Architecture
from trimtab.testing.laws.merging import affine, try_merge
from trimtab.testing.trial import (
    NotApplicable,
    NotHere,
    Trial,
    assert_differs,
    assert_near,
    assert_same,
    ensure,
    perturb,
    state,
)

OTHER = LoRA(rank=3)


def _attach(trial: Trial, name: str, seed: int) -> None:
    """Whatever was drawn before, the method's fixed tensors are the same."""
    torch.manual_seed(0)
    trial.perturbed(name, seed)


def _three(method: Method, architecture: Architecture) -> Trial:
    """The method twice, with other values, and a LoRA between."""
    trial = Trial(method, architecture)
    _attach(trial, "a", 1)
    perturb(attach(trial.model, OTHER, name="b"), 2)
    _attach(trial, "c", 3)
    return trial


def _alone(method: Method, architecture: Architecture, seed: int) -> Tensor:
    trial = Trial(method, architecture)
    _attach(trial, "default", seed)
    return trial.outputs()


def each_as_if_alone(method: Method, architecture: Architecture) -> None:
    """Activating one of several equals having it alone; activating none, the base."""
    trial = _three(method, architecture)
    base = trial.outputs(architecture.model())
    outputs = []
    for name, seed in {"c": 3, "a": 1}.items():
        activate(trial.model, name)
        outputs.append(trial.outputs())
        assert_same(outputs[-1], _alone(method, architecture, seed), f"{name!r}, one of three")
        given = {id(p) for p in parameters(trial.model)}
        asking = {id(p) for p in trial.model.parameters() if p.requires_grad}
        ensure(asking == given, "not exactly the active adapter's parameters train")
    assert_differs(*outputs, "two adapters with other values")
    activate(trial.model, None)
    assert_same(trial.outputs(), base, "no adapter active, against the base")


def removal_leaves_the_rest(method: Method, architecture: Architecture) -> None:
    """What one adapter leaves behind is the others and the base, bit for bit."""
    trial = _three(method, architecture)
    before, outputs = state(trial.model), {}
    for name in ("a", "b"):
        activate(trial.model, name)
        outputs[name] = trial.outputs()
    detach(trial.model, "c")
    activate(trial.model, None)
    held = trial.model.state_dict()
    gone = {name for name in before if ".deltas.c." in f".{name}"}
    ensure(set(held) == set(before) - gone, "more or less was removed than the adapter's tensors")
    base = architecture.model().state_dict()
    changed = [n for n in held if not torch.equal(held[n], base.get(n, before[n]))]
    ensure(changed == [], f"the values of {changed} changed with the removal")
    for name in ("a", "b"):
        activate(trial.model, name)
        assert_same(trial.outputs(), outputs[name], f"{name!r} after another was removed")
    for name in reversed(list(record(trial.model).adapters)):
        detach(trial.model, name)
    assert_same(trial.outputs(), trial.outputs(architecture.model()), "the model without adapters")
    ensure(list(trial.model.state_dict()) == list(base), "something is left of the adapters")
    found = [type(module) for module in trial.model.modules()]
    ensure(found == [type(module) for module in architecture.model().modules()], "a module is left")


def stacks_train_both(method: Method, architecture: Architecture) -> None:
    """One upon the other both act and both train; an affine law merges in either order."""
    trial = Trial(method, architecture)
    trial.perturbed("a")
    one = trial.outputs()
    perturb(attach(trial.model, OTHER, name="b"), 2)
    for names in (("a", "b"), ("b", "a")):
        try:
            activate(trial.model, Stack(*names))
        except InputError as error:
            raise NotApplicable(str(error)) from None
        outputs = trial.outputs()
        assert_differs(outputs, one, f"the stack {names}, against one of the two")
        if affine(method):
            _merged_stack(trial, outputs, names)
        trial.loss().backward()
        held = record(trial.model).adapters
        wanted = {id(p) for name in names for p in held[name].parameters()}
        ensure(wanted <= {id(p) for p in parameters(trial.model)}, "one of the two does not train")
        for name in names:
            reached = [p for p in held[name].parameters() if p.grad is not None]
            ensure(reached, f"no gradient reaches {name!r} in the stack {names}")
        trial.model.zero_grad()


def _merged_stack(trial: Trial, outputs: Tensor, names: tuple[str, str]) -> None:
    try:
        try_merge(trial)
    except NotHere:  # tied weights: said by the law of merging
        return
    assert_near(trial.outputs(), outputs, f"the stack {names}, merged against unmerged")
    unmerge(trial.model)
    assert_same(trial.outputs(), outputs, f"the stack {names} after unmerging")


def routes_equal_one_at_a_time(method: Method, architecture: Architecture) -> None:
    """A batch whose examples use other adapters equals one adapter at a time."""
    if not architecture.apart:
        raise NotHere("the model compares the examples of a batch with each other")
    trial = Trial(method, architecture)
    _attach(trial, "a", 1)
    _attach(trial, "b", 3)
    alone = {}
    for name in ("a", "b"):
        activate(trial.model, name)
        alone[name] = trial.outputs()
    try:
        activate(trial.model, Route("a", "b"))
    except InputError as error:
        raise NotApplicable(str(error)) from None
    for names in (["a", "b"], ["b", "a"], ["b", "b"]):
        with given(trial.model, route=names):
            outputs = trial.outputs()
        for row, name in enumerate(names):
            what = f"example {row} routed to {name!r}, of {names}"
            assert_near(outputs[row], alone[name][row], what, 1e-5)
