"""What a budget can be spent on: a method at a site, and what each further rank of it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.method import Method, Selection
from trimtab.core.site import Site
from trimtab.match import Target, among, sites

View = Literal["map", "shift", "gain"]
"""What of the site trains: its matrix, by ranks; its bias; a norm's gain, with its bias if any."""


@dataclass(frozen=True)
class Candidate:
    """A method at a site; `costs` are parameters that each rank adds, from the first. What has no
    ranks has one cost."""

    site: Site
    method: Method
    view: View
    costs: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the gradient: a vector is a matrix of one column."""
        if self.view == "map":
            return self.site.out_features, self.site.in_features
        both = self.view == "gain" and self.site.bias is not None
        return self.site.out_features * (2 if both else 1), 1

    def own(self) -> Tensor:
        """The base's values there, of that shape, in fp32."""
        if self.view == "map":
            return self.site.matrix.detach().float()
        held = (self.site.weight, self.site.bias) if self.view == "gain" else (self.site.bias,)
        return torch.cat([one.detach().float() for one in held if one is not None])[:, None]

    def seen(self, x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Input and gradient of that matrix, (examples, n, …) in fp32, from the module's input,
        output and gradient at its output."""
        if self.site.rows is not None:
            y, g = (one[..., slice(*self.site.rows)] for one in (y, g))
        if not self.site.batch_first and g.ndim > 2:
            x, y, g = (one.transpose(0, 1) for one in (x, y, g))
        g = _rows(g)
        if self.view == "map":
            return _rows(x), g
        if self.view == "gain":
            g = torch.cat([g * self._normal(_rows(y)), g][: 1 + (self.site.bias is not None)], -1)
        return torch.ones_like(g[..., :1]), g

    def _normal(self, y: Tensor) -> Tensor:
        """What the gain multiplies; where it is zero, nothing is known of that."""
        weight, bias = self.site.weight.detach().float(), self.site.bias
        y = y if bias is None else y - bias.detach().float()
        return torch.where(weight == 0, 0, y / weight)


def _rows(one: Tensor) -> Tensor:
    """(examples, n, features) in fp32: what lies between is n, a plain batch has n = 1."""
    one = one.detach().float()
    return one[:, None] if one.ndim == 2 else one.flatten(1, -2)


def candidates(
    model: nn.Module, methods: Sequence[Method], target: Target | None, most: int
) -> list[Candidate]:
    """Every site of every method, in the model's order, with at most `most` ranks each."""
    known, found = sites(model), []
    for method in methods:
        view = view_of(method)
        wanted = method.targets if target is None or view != "map" else target
        for site in among(known, wanted, method):
            if site.parameter is None and not site.geometry.count:
                found.append(Candidate(site, method, view, _costs(method, site, view, most)))
    if not found:
        names = ", ".join(method.name for method in methods)
        raise InputError(f"{names}: no site is a module that the model calls, so none is measured")
    return found


def ranked(method: Method) -> bool:
    """Whether it has a rank, which a plan chooses."""
    return "rank" in {field.name for field in dataclasses.fields(method)}


def view_of(method: Method) -> View:
    """What of a site the method trains, from what it says of itself."""
    if isinstance(method, Selection) or method.needs:
        raise InputError(
            f"{method.name} is no method at single sites, between which a budget could be divided"
        )
    if ranked(method) and "linear" in method.kinds:
        return "map"
    if method.targets == ("biases",):
        return "shift"
    if method.kinds == {"norm"}:
        return "gain"
    raise InputError(
        f"{method.name}: a plan divides a budget among ranks (lora, dora, …), biases (bitfit) and "
        "norms (ln), or gives all of it to layers, fish or full; measure it by --search instead"
    )


def at_rank(method: Method, rank: int) -> Method:
    """The same with another rank, and an alpha that leaves the scale of its update as it is."""
    if not ranked(method):
        return method
    values = method.arguments()
    if "alpha" in values:
        ratio = rank / values["rank"]
        ratio = math.sqrt(ratio) if values.get("rslora") else ratio
        values["alpha"] *= ratio
    return type(method)(**{**values, "rank": rank})


def size(method: Method, site: Site) -> int:
    """The parameters that it trains there."""
    with torch.random.fork_rng(devices=[]):
        held = method.settled(site).init(site)
    return sum(one.value.numel() for one in held.values() if one.trained)


def _costs(method: Method, site: Site, view: View, most: int) -> tuple[int, ...]:
    if view != "map":
        return (size(method, site),)
    most = min(most, site.out_features, site.in_features)
    first = size(at_rank(method, 1), site)
    further = size(at_rank(method, 2), site) - first if most > 1 else 0
    return (first, *[further] * (most - 1))
