"""Law 8: at every kind of layer the method acts, and merges where it is affine, or an error says
why not; nothing happens in silence."""

from __future__ import annotations

import torch

from trimtab.adapt import attach, detach, merge, unmerge
from trimtab.core.errors import InputError, StateError, TrimtabError
from trimtab.core.method import Method, Selection
from trimtab.core.training import parameters
from trimtab.testing.laws.merging import affine
from trimtab.testing.layers import Layer
from trimtab.testing.trial import (
    NotApplicable,
    assert_differs,
    assert_near,
    assert_same,
    assert_same_state,
    ensure,
    perturb,
    state,
)


def acts_or_says_why(method: Method, layer: Layer) -> None:
    """Under each of the layer's targets."""
    if isinstance(method, Selection):
        raise NotApplicable("it trains parameters of the base and acts at no site")
    if getattr(method, "needs", None):
        raise NotApplicable(f"it needs {', '.join(sorted(method.needs))}, which one layer has not")
    reasons = [reason for target in layer.targets if (reason := _at(method, layer, target))]
    if len(reasons) == len(layer.targets):
        raise NotApplicable(reasons[0])


def _at(method: Method, layer: Layer, target: str) -> str | None:
    """Why the method does not act at this target, or None where it does, and merges."""
    model, batch = layer.model.model(), layer.model.batch()
    before, base = state(model), layer.model.outputs(model, batch)
    try:
        adapter = attach(model, method, to=target)
    except InputError as error:
        ensure(str(error), f"{target!r} of {layer.name} is refused without a reason")
        assert_same_state(model, before)
        assert_same(layer.model.outputs(model, batch), base, f"{layer.name} after a refusal")
        return str(error)
    perturb(adapter)
    try:
        outputs = layer.model.outputs(model, batch)
    except (InputError, StateError) as error:
        ensure(str(error), f"{target!r} of {layer.name} is refused without a reason")
        return str(error)
    where = f"{target!r} of {layer.name}"
    assert_differs(outputs, base, f"{where}, after its parameters changed")
    layer.model.loss(model, batch).backward()
    reached = [p for p in parameters(model) if p.grad is not None and p.grad.abs().max() > 0]
    ensure(reached, f"no gradient reaches the adapter at {where}")
    try:
        merge(model)
    except TrimtabError as error:
        ensure(
            not affine(method) or method.base,
            f"it is affine and does not merge at {where}: {error}",
        )
    else:
        assert_near(layer.model.outputs(model, batch), outputs, f"{where}, merged")
        unmerge(model)
    detach(model)
    assert_same_state(model, before)
    with torch.no_grad():
        assert_same(layer.model.outputs(model, batch), base, f"{where} without its adapter")
    return None
