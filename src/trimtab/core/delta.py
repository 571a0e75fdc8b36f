"""The trained parameters of one method at one site, and those that an adapter's sites share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.method import Method, Param, Values
from trimtab.core.site import Site


class Tensors(nn.Module):
    """Named tensors. Trained ones are kept in fp32, whatever the base's dtype, and cast down at
    use, so that small updates are not rounded away; the others in the precision they came in.
    """

    def __init__(self, params: Mapping[str, Param], device: torch.device) -> None:
        super().__init__()
        self.hold(params, device)

    def hold(self, params: Mapping[str, Param], device: torch.device) -> None:
        """From now on these. A trained one that keeps its shape stays the very parameter."""
        for name in {*self._parameters, *self._buffers} - params.keys():
            delattr(self, name)
        for name, param in params.items():
            value = param.value.detach().to(device)
            if param.trained:  # past `register_parameter`: any name will do, even "tensors"
                master = value.to(torch.promote_types(value.dtype, torch.float32))
                known = self._parameters.get(name)
                if known is not None and known.shape == master.shape:
                    known.data = master
                else:
                    trains = known is None or known.requires_grad
                    self._parameters[name] = nn.Parameter(master, requires_grad=trains)
            else:
                self._buffers[name] = value
        self._know(exact=frozenset(name for name, param in params.items() if param.exact))
        self._know(rates={n: param.rate for n, param in params.items() if param.rate != 1})

    exact: frozenset[str]
    rates: dict[str, float]

    def _know(self, **facts: Any) -> None:
        """Facts beside the tensors, one of which may have the same name."""
        self.__dict__.update(facts)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: what is saved."""
        own: dict[str, Tensor | None] = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def _apply(self, fn: Any, recurse: bool = True) -> Tensors:
        """`.to(bfloat16)` moves the masters and leaves them their precision."""
        masters = {name: tensor.data for name, tensor in self.tensors().items()}
        super()._apply(fn, recurse)
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.promote_types(tensor.dtype, masters[name].dtype):
                tensor.data = masters[name].to(tensor.device)
        return self

    def cast(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors for use in a computation of this dtype; gradients flow to the masters."""
        return {name: self._cast(name, tensor, dtype) for name, tensor in self.tensors().items()}

    def _cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if name in self.exact or not (tensor.is_floating_point() and dtype.is_floating_point):
            return tensor
        return tensor.to(dtype)

    def forward(self, x: Any) -> Any:
        """Hands on what it gets: a model that calls its children one by one may call this too."""
        return x


class Delta(Tensors):
    """One method's parameters at one site, the `index`th of its `total` sites, with those it
    shares."""

    def __init__(
        self,
        method: Method,
        site: Site,
        index: int = 0,
        shared: Tensors | None = None,
        device: torch.device | None = None,
        total: int = 1,
        held: Mapping[str, Param] | None = None,
    ) -> None:
        super().__init__(params(method, site) if held is None else held, device or site.device)
        self._know(method=method, site=site.bare, index=index, total=total)
        self._know(shared=shared)  # beside the module tree: its home is the model's root

    method: Method
    site: Site
    index: int
    total: int
    shared: Tensors | None

    def become(self, method: Method, params: Mapping[str, Param] | None = None) -> None:
        """The same place under other hyper-parameters, with these tensors or those that it has."""
        if params is not None:
            self.hold(params, next(iter(self.tensors().values())).device)
        self._know(method=method)

    def values(self, dtype: torch.dtype) -> Values:
        return self._values(
            {} if self.shared is None else self.shared.cast(dtype), self.cast(dtype)
        )

    def live(self) -> Values:
        """The very tensors, with their gradients: for schedules."""
        return self._values({} if self.shared is None else self.shared.tensors(), self.tensors())

    def _values(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Values:
        tensors = {**shared, **own}
        return Values(tensors, self.training, self.site, self.index, self.total, frozenset(shared))

    def alike(self) -> Delta:
        """The same in the terms of another method, where its own states them."""
        found = self.method.alike(self.live())
        if found is None:
            return self
        held = {name: Param(tensor) for name, tensor in found[1].items()}
        device = next(iter(found[1].values())).device
        return Delta(found[0], self.site, self.index, None, device, self.total, held)

    @property
    def key(self) -> str:
        """What it is called among the deltas of an adapter at one module."""
        parts = [self.method.name]
        if self.site.parameter is not None:
            parts.append(self.site.parameter.replace(".", "/"))
        if self.site.rows is not None:
            parts.append(self.site.name.rpartition("[")[2].rstrip("]"))
        return "@".join(parts)

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(t.shape)}" for name, t in self.tensors().items())
        return f"{self.method}, {shapes}"


def params(method: Method, site: Site) -> dict[str, Param]:
    """The method's fresh parameters at a site; of experts one set each, stacked."""
    count = site.geometry.count
    if not count:
        return method.init(site)
    each = [method.init(replace(site, expert=index)) for index in range(count)]
    return {
        name: replace(param, value=torch.stack([one[name].value for one in each]))
        for name, param in each[0].items()
    }
