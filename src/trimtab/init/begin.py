"""What all starts share: the low-rank deltas of an adapter, the base's matrices, new factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core import sharded
from trimtab.core.adapter import Adapter, intact, record, unwrap
from trimtab.core.delta import Delta
from trimtab.core.errors import AdapterMismatch, InputError, StateError, nearest
from trimtab.core.host import Host
from trimtab.core.lowrank import LowRank
from trimtab.core.method import Param
from trimtab.core.site import Site
from trimtab.match import sites

FACTORS = ("A", "B", "A0", "B0")


@dataclass(frozen=True)
class Place:
    """A site of the model with the low-rank delta that starts there."""

    site: Site
    delta: Delta

    @property
    def method(self) -> LowRank:
        method = self.delta.method
        assert isinstance(method, LowRank)
        return method


@dataclass(frozen=True)
class Start:
    """The factors to start from, under this method; of rank 0, the site is left out."""

    place: Place
    method: LowRank
    A: Tensor
    B: Tensor


def places(model: nn.Module, name: str | None) -> tuple[Adapter, list[Place]]:
    """The adapter, and where it has low-rank deltas; the base's weights are its own now."""
    record_ = record(model)
    record_.switch.refuse_held()
    adapter = record_.adapter(name)
    intact(model, [adapter])
    sharded.refuse(unwrap(model))
    require_base(model)
    known = {site.name: site for site in sites(unwrap(model))}
    found = [
        Place(known[site], delta)
        for site, delta in adapter.deltas()
        if isinstance(delta.method, LowRank)
    ]
    if not found:
        kinds = ", ".join(sorted({method.name for _, method in adapter.entries}))
        raise InputError(
            f"adapter {adapter.name!r} ({kinds}) has no low-rank factors to start: attach "
            "trimtab.LoRA or trimtab.DoRA"
        )
    for place in found:
        if place.method.scale <= 0:
            raise InputError(f"{place.method.name}: alpha must be positive to start from weights")
    return adapter, found


def require_base(model: nn.Module) -> None:
    """Raise where the base's weights are not its own at the moment."""
    record_ = record(model)
    if record_.switch.merged:
        raise StateError("the model is merged: unmerge it before an adapter starts from its base")
    for adapter in record_.adapters.values():
        if adapter.selection is not None and adapter.in_place:
            raise StateError(
                f"adapter {adapter.name!r} has changed the base's own parameters: activate another "
                "before one starts from the base"
            )


def matrix(site: Site) -> Tensor:
    """The base's (out, in) there, in fp32."""
    W = site.matrix
    if not W.is_floating_point() or W.shape[-2:] != (site.out_features, site.in_features):
        raise InputError(
            f"{site.name!r} holds codes of {W.dtype} {tuple(W.shape)}, and no float weights to "
            "start from: start on the float model, or use trimtab.init.loftq(model, floats)"
        )
    return W.to(torch.float32)


def elsewhere(site: Site, state: Mapping[str, Tensor]) -> Tensor:
    """The (out, in) that another model, of this state dict, has in the place of the base's."""
    names = [f"{home}.{site.parameter or 'weight'}".lstrip(".") for home in site.homes]
    name = next((one for one in names if one in state), None)
    if name is None:
        raise AdapterMismatch(f"the other model has no {names[0]!r}; {nearest(names[0], state)}")
    tensor = state[name].detach()
    W = (site.whole or site.geometry).read(tensor)
    W = W if site.rows is None else W[slice(*site.rows)]
    if not W.is_floating_point() or W.shape[-2:] != (site.out_features, site.in_features):
        raise AdapterMismatch(
            f"{name!r} of the other model is {tensor.dtype} {tuple(tensor.shape)}, and must be "
            f"floats of {site.out_features} x {site.in_features}"
        )
    return W.to(torch.float32)


def require_rank(place: Place, rank: int, what: str = "the rank") -> None:
    """A matrix has no more directions than its smaller side."""
    most = min(place.site.out_features, place.site.in_features)
    if rank > most:
        raise InputError(
            f"{what} at {place.site.name!r} is {rank}, and a matrix of {place.site.out_features} x "
            f"{place.site.in_features} has {most} directions to start from: lower the rank there"
        )


def svd(W: Tensor, rank: int, niter: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, rank), S (rank,), Vᵀ (rank, in); with `niter` of random subspace iteration."""
    if niter is None:
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        return U[..., :rank], S[..., :rank], V[..., :rank, :]
    U, S, V = torch.svd_lowrank(W, q=rank, niter=niter)
    return U, S, V.mT


def halves(U: Tensor, S: Tensor, V: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(A, B) with scale B A = U diag(S) Vᵀ, √S to each."""
    root = (S / scale).sqrt()
    return root[..., :, None] * V, U * root[..., None, :]


def anchored(place: Place, A: Tensor, B: Tensor) -> Start:
    """A start of which the base keeps its share: W + s (B A - B₀ A₀)."""
    return Start(place, replace(place.method, anchored=True), A, B)


def free(place: Place, A: Tensor, B: Tensor, **changes: Any) -> Start:
    """A start that counts in full: W + s B A."""
    return Start(place, replace(place.method, anchored=False, **changes), A, B)


@torch.no_grad()
def settle(adapter: Adapter, starts: Iterable[Start]) -> Adapter:
    """Put the factors in place, once all of them are known."""
    for start in list(starts):
        delta = start.place.delta
        if start.A.shape[-2] == 0:
            leave_out(adapter, start.place)
            continue
        others = {
            name: Param(tensor.data, name in delta._parameters, name in delta.exact)
            for name, tensor in delta.tensors().items()
            if name not in FACTORS
        }
        A, B = start.A.contiguous(), start.B.contiguous()
        delta.become(start.method, {**start.method.begun(A, B), **others})
    adapter.renew()
    return adapter


def leave_out(adapter: Adapter, place: Place) -> None:
    """Take the delta off; what else the adapter has there stays."""
    host, delta = adapter.hosts[place.site.name], place.delta
    assert isinstance(host, Host)
    held: Any = host.deltas._modules[adapter.name]
    del held._modules[delta.key]
    if not held._modules:
        host.deltas.drop(adapter.name)
    adapter.members.remove(delta)
    if all(one.site.name != place.site.name for one in adapter.members):
        del adapter.hosts[place.site.name]


def plainly(found: Sequence[Place], why: str) -> None:
    """Raise where a site is no linear map that is called: no inputs of it can be seen."""
    for place in found:
        site = place.site
        if site.geometry.kind != "linear" or site.parameter is not None or site.geometry.count:
            raise InputError(
                f"{site.name!r} ({type(site.module).__name__}) is no linear map that the model "
                f"calls, and {why}: leave it out of the adapter, or start from weights (pissa)"
            )
