"""A change of a few numbers of a matrix: values at fixed places, zero elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.call import Call
from trimtab.core.method import Additive, Param, Values
from trimtab.core.operator import Operator
from trimtab.core.recompute import product
from trimtab.core.site import Site


@dataclass(frozen=True, kw_only=True)
class Sparse(Additive):
    """W' = W + S, S (out, in) with `values` (k,) at `indices` (2, k), rows and columns.

    What is kept and trained is k numbers; the places go into the file, so that it stands by itself.
    """

    dense: ClassVar[bool] = True

    @abstractmethod
    def places(self, site: Site) -> Tensor:
        """Where the values are at the start: sorted positions in the flattened matrix."""

    @abstractmethod
    def allotted(self, sizes: list[int]) -> int | None:
        """How many values sites of these sizes may share out among them when data choose the
        places; None where each keeps as many as it has."""

    @abstractmethod
    def placed(self, count: int) -> Sparse:
        """The method at a site where data chose the places of `count` values."""

    def init(self, site: Site) -> dict[str, Param]:
        return held(self.places(site), site.in_features)

    def misfit(self, p: Values) -> str | None:
        return outside(p.indices, p.site)

    def delta(self, p: Values) -> Tensor:
        return scattered(p.values, p.indices, p.site.out_features, p.site.in_features)

    def forward(self, p: Values, x: Tensor, inner: Operator, call: Call) -> Tensor:
        if not p.values.numel():  # data may leave a site without any
            return inner(x)
        return super().forward(p, x, inner, call)

    def affine(self, p: Values, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + delta(p), of which k numbers are touched."""
        places = _places(p.indices, p.site.in_features)
        return W.flatten().index_add(0, places, p.values.to(W.dtype)).view_as(W), b

    def matvec(self, p: Values, x: Any) -> Tensor:
        return product(x, lambda: self.delta(p))


def held(places: Tensor, width: int) -> dict[str, Param]:
    """The tensors of values that start at zero."""
    indices = torch.stack([places // width, places % width]).to(torch.int32)
    return {
        "values": Param(torch.zeros(places.shape)),
        "indices": Param(indices, trained=False),
    }


def scattered(values: Tensor, indices: Tensor, out: int, width: int) -> Tensor:
    """(out, width) with the values at their indices (2, k)."""
    return (
        values.new_zeros(out * width).scatter(0, _places(indices, width), values).view(out, width)
    )


def _places(indices: Tensor, width: int) -> Tensor:
    rows, columns = indices.long()
    return rows * width + columns


def outside(indices: Tensor, site: Site) -> str | None:
    """What is wrong with a file's indices (…, 2, k), if anything."""
    sizes = torch.tensor([[site.out_features], [site.in_features]], device=indices.device)
    if bool((indices < 0).any()) or bool((indices >= sizes).any()):
        return f"indices lie beyond its {site.out_features} x {site.in_features}"
    places = (indices[..., 0, :].long() * site.in_features + indices[..., 1, :]).sort().values
    twice = bool((places[..., 1:] == places[..., :-1]).any())
    return "indices name a place twice" if twice else None


def drawn(count: int, site: Site, seed: int | None) -> Tensor:
    """So many places of the site's matrix at random, in the order in which they are drawn; the same
    for the same seed, and for none."""
    generator = torch.Generator("cpu")
    if seed is not None:
        generator.manual_seed(seed)
    size = site.out_features * site.in_features
    return torch.randperm(size, generator=generator, device="cpu")[:count]


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the largest scores, sorted."""
    return scores.flatten().topk(count).indices.sort().values
