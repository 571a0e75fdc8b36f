"""Where an edit acts: one module of the base, seen as a linear map (out, in), or as a gain and
bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["linear", "norm", "other"]


# Norms whose gain acts along the channels, the second dimension, and not along the last.
_NOT_LAST = ("batchnorm", "groupnorm", "instancenorm", "syncbatchnorm", "lazy")


@dataclass(frozen=True)
class Geometry:
    """How a module stores its map. A linear map is read as an (out, in) matrix whatever its
    storage.

    `transposed` tells that the module keeps (in, out), as transformers' `Conv1D` does.
    A norm has a gain of shape (out,) and `in_features == out_features`.
    """

    kind: Kind
    out_features: int
    in_features: int
    transposed: bool = False

    def read(self, weight: Tensor) -> Tensor:
        """The module's weight as (out, in), or its gain as (out,)."""
        return weight.T if self.transposed else weight

    def store(self, weight: Tensor) -> Tensor:
        """The inverse of `read`: from (out, in) to the layout of the module."""
        return weight.T.contiguous() if self.transposed else weight


def geometry(module: nn.Module) -> Geometry:
    """Recognise a module by what it offers, so that subclasses and other libraries' layers
    count.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and not isinstance(module, nn.Bilinear):
        out, inp = getattr(module, "out_features", None), getattr(module, "in_features", None)
        if isinstance(out, int) and isinstance(inp, int):
            return Geometry("linear", out, inp)
        if type(module).__name__ == "Conv1D" and weight.ndim == 2:
            return Geometry("linear", weight.shape[1], weight.shape[0], transposed=True)
        name = type(module).__name__.lower()
        if weight.ndim == 1 and "norm" in name and not name.startswith(_NOT_LAST):
            return Geometry("norm", weight.shape[0], weight.shape[0])
    return Geometry("other", 0, 0)


@dataclass(frozen=True)
class Site:
    """One place of the base: its name, what else it is called there, its geometry and its roles.

    A module that hangs in the tree at several places (tied layers) is one site with several paths.
    """

    name: str
    module: nn.Module
    geometry: Geometry
    roles: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()

    @property
    def out_features(self) -> int:
        return self.geometry.out_features

    @property
    def in_features(self) -> int:
        return self.geometry.in_features

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def device(self) -> torch.device:
        return next(own_tensors(self.module)).device

    def __str__(self) -> str:
        return (
            f"{self.name} ({type(self.module).__name__} {self.out_features} x {self.in_features})"
        )


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The module's own parameters and buffers, its children's left out."""
    yield from (p for p in module.parameters(recurse=False))
    yield from (b for b in module.buffers(recurse=False))
    yield torch.empty(0)
