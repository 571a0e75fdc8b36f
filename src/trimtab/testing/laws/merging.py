"""Law 3: merged equals unmerged, the law's matrix is the matrix that one probes, and unmerging
restores the base bit for bit."""

from __future__ import annotations

import torch

from trimtab.adapt import activate, detach, merge, unmerge
from trimtab.core.errors import StateError, TrimtabError
from trimtab.core.host import Host
from trimtab.core.method import Additive, Method, Transform
from trimtab.core.operator import Base
from trimtab.testing.architectures import Architecture
from trimtab.testing.trial import (
    NotApplicable,
    NotHere,
    Trial,
    assert_near,
    assert_same,
    assert_same_state,
    ensure,
    state,
)


def affine(method: Method) -> bool:
    """Whether the method states a law over the site's matrix."""
    return isinstance(method, Additive | Transform)


def try_merge(trial: Trial) -> None:
    """Merge, or leave the model as it was and say why not: only what is affine must merge."""
    before, outputs = state(trial.model), trial.outputs()
    try:
        merge(trial.model)
    except TrimtabError as error:
        ensure(str(error), "merging is refused without a reason")
        assert_same_state(trial.model, before)
        assert_same(trial.outputs(), outputs, "the outputs after a merge that was refused")
        if (isinstance(error, StateError) or trial.method.base) and affine(
            trial.method
        ):  # tied weights, which another model has not; codes: law 9 merges those
            raise NotHere(str(error)) from None
        ensure(not affine(trial.method), f"it is affine, and does not merge: {error}")
        raise NotApplicable(str(error)) from None


def merged_equals_unmerged(method: Method, architecture: Architecture) -> None:
    """Merged weights compute what base and adapter compute."""
    trial = Trial(method, architecture)
    trial.perturbed()
    unmerged = trial.outputs()
    try_merge(trial)
    assert_near(trial.outputs(), unmerged, "merged against unmerged")


def law_equals_probe(method: Method, architecture: Architecture) -> None:
    """The identity gives the matrix that the law states."""
    if not affine(method):
        raise NotApplicable("not affine: it has no matrix")
    trial = Trial(method, architecture)
    hosts = trial.perturbed().hosts
    for site, host in hosts.items():
        if type(host) is Host:
            _probe(site, host)


@torch.no_grad()
def _probe(site: str, host: Host) -> None:
    """The identity gives the matrix; any input gives what the base would with the law's tensors."""
    operator, geometry = host.operator(), host.geometry
    if geometry.kind not in ("linear", "norm"):
        return
    weight, bias = operator.weight, operator.bias
    if geometry.kind == "linear":
        ensure(weight.shape == (geometry.out_features, geometry.in_features), f"{site}: its shape")
        at_zero = operator(torch.zeros(1, geometry.in_features))
        probed = (operator(torch.eye(geometry.in_features)) - at_zero).T
        assert_near(weight, probed, f"{site}: the law's matrix against the probed one", 1e-5)
        shift = torch.zeros(geometry.out_features) if bias is None else bias
        assert_near(at_zero[0], shift, f"{site}: the law's bias against the probed one", 1e-5)
    own = {"weight": geometry.store(weight)} | ({} if bias is None else {"bias": bias})
    x = torch.randn(3, geometry.in_features)
    expected = Base(host.base, geometry).using(own, x)
    assert_near(operator(x), expected, f"{site}: forward against the base with the law's weights")


def unmerge_restores(method: Method, architecture: Architecture) -> None:
    """After merging and unmerging every bit is as it was, in fp32 and in bf16."""
    for dtype in (torch.float32, torch.bfloat16):
        trial = Trial(method, architecture, dtype)
        base = state(trial.model)
        trial.perturbed()
        attached, outputs = state(trial.model), trial.outputs()
        try_merge(trial)
        unmerge(trial.model)
        assert_same_state(trial.model, attached)
        assert_same(trial.outputs(), outputs, f"the outputs after unmerging ({dtype})")
        activate(trial.model, None)
        held = trial.model.state_dict()
        changed = [name for name, tensor in base.items() if not torch.equal(held[name], tensor)]
        ensure(changed == [], f"{changed} are not the base's after unmerging ({dtype})")


def merged_is_ordinary(method: Method, architecture: Architecture) -> None:
    """A merged model's state loads into a plain model, which then gives the adapted outputs."""
    trial, plain = Trial(method, architecture), architecture.model()
    trial.perturbed()
    unmerged = trial.outputs()
    try_merge(trial)
    ensure(list(trial.model.state_dict()) == list(plain.state_dict()), "other keys")
    plain.load_state_dict(trial.model.state_dict(), strict=True)
    assert_near(trial.outputs(plain), unmerged, "a plain model with the merged weights")
    kept = detach(trial.model, keep=True)
    assert_same_state(kept, dict(plain.state_dict()))
    assert_same(trial.outputs(kept), trial.outputs(plain), "the model for export")
