"""Where an edit acts: a map seen as (out, in), a gain and bias, an attention, or a whole stack."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from trimtab.core import quantised

Kind = Literal["linear", "norm", "embedding", "conv", "attention", "block", "stack", "other"]

# Norms whose gain acts along the channels, the second dimension, and not along the last.
_NOT_LAST = ("batchnorm", "groupnorm", "instancenorm", "syncbatchnorm", "lazy")


@dataclass(frozen=True)
class Geometry:
    """How a module stores its map, which laws see as an (out, in) matrix whatever its storage.

    An embedding is (d, V), the map of one-hot rows; a convolution is (out, in / groups · kernel),
    the map of patches; a norm has a gain (out,), and `in_features == out_features`.

    `transposed` tells that the module keeps (in, out), as transformers' `Conv1D` does; `shape` is
    its layout where that is no matrix; `gain` multiplies an embedding's output; `count` is the
    number of matrices held in one tensor (experts), 0 for a plain one.
    """

    kind: Kind
    out_features: int
    in_features: int
    transposed: bool = False
    shape: tuple[int, ...] = ()
    groups: int = 1
    gain: float = 1.0
    count: int = 0

    def read(self, weight: Tensor) -> Tensor:
        """The module's weight as (out, in), its gain as (out,), its experts as (count, out, in)."""
        matrix = weight.flatten(1) if self.shape else weight
        return matrix.mT if self.transposed else matrix

    def store(self, weight: Tensor) -> Tensor:
        """The inverse of `read`: from (out, in) to the layout of the module."""
        matrix = weight.mT.contiguous() if self.transposed else weight
        return matrix.reshape(self.shape) if self.shape else matrix


def geometry(module: nn.Module) -> Geometry:
    """Recognise a module by what it offers, so that subclasses and other libraries' layers
    count.
    """
    weight, mapped = getattr(module, "weight", None), quantised.features(module)
    if isinstance(module, nn.Bilinear) or peculiar(module):
        return Geometry("other", 0, 0)
    if mapped is not None and (isinstance(weight, Tensor) or quantised.coded(module)):
        return Geometry("linear", *mapped)
    if not isinstance(weight, Tensor):
        return Geometry("other", 0, 0)
    name = type(module).__name__
    if name == "Conv1D" and weight.ndim == 2:
        return Geometry("linear", weight.shape[1], weight.shape[0], transposed=True)
    if isinstance(module, nn.Embedding):
        gain = float(getattr(module, "embed_scale", 1.0))
        return Geometry("embedding", weight.shape[1], weight.shape[0], transposed=True, gain=gain)
    if isinstance(module, _CONVS):
        shape = tuple(weight.shape)
        inner = math.prod(shape[1:])
        return Geometry("conv", shape[0], inner, shape=shape, groups=module.groups)
    if weight.ndim == 1 and "norm" in name.lower() and not name.lower().startswith(_NOT_LAST):
        return Geometry("norm", weight.shape[0], weight.shape[0])
    return Geometry("other", 0, 0)


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def peculiar(module: nn.Module) -> str | None:
    """Why a module of a known kind is still no map that laws could stand on."""
    name = type(module).__name__
    if isinstance(getattr(module, "weight", None), UninitializedParameter):
        return f"{name} has no weight before it has run: run the model once first"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its max_norm rewrites the rows of its weight whenever they are read"
    if isinstance(module, (nn.Embedding, *_CONVS)) and not _computes_plainly(module):
        return f"{name} has a forward of its own, which may do more than apply its weight"
    if routes(module):
        return f"{name} gives its choice of experts: its matrix is a site, under the name `weight`"
    return None


def routes(module: nn.Module) -> bool:
    """Whether a module chooses experts by a matrix (experts, d) that it holds."""
    weight = module._parameters.get("weight")
    named = type(module).__name__.endswith("Router") and type(module).forward is not _PLAIN
    return named and weight is not None and weight.ndim == 2


_PLAIN = nn.Linear.forward


def _computes_plainly(module: nn.Module) -> bool:
    """Whether it is torch's own map, or an embedding whose output is scaled by a number."""
    own: Any = type(module)
    if isinstance(module, nn.Embedding):
        scaled: bool = own.__name__.endswith("ScaledWordEmbedding") and hasattr(
            module, "embed_scale"
        )
        return scaled or own.forward is nn.Embedding.forward
    return any(
        own.forward is known.forward and own._conv_forward is known._conv_forward
        for known in _CONVS
    )


@dataclass(frozen=True)
class Site:
    """One place of the base: its name, what else it is called there, its geometry and its roles.

    A module that hangs in the tree at several places (tied layers) is one site with several paths;
    `homes` is where `module` hangs.

    `rows` is the part of a fused map, the `whole`, that the site is; `parameter` the tensor's name
    where `module` reads it itself instead of calling a child; `entry` the map that reads what the
    sublayer reads whose output this site is; `stack` the run of blocks that it lies in; `expert`
    the one of several matrices for which parameters are asked; `batch_first` whether the layers
    there keep examples before positions; `part` what the site belongs to in a model of several
    modalities: vision, audio, text, connector.
    """

    name: str
    module: nn.Module
    geometry: Geometry
    roles: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None
    whole: Geometry | None = None
    parameter: str | None = None
    entry: str | None = None
    stack: str | None = None
    expert: int | None = None
    batch_first: bool = True
    part: str | None = None

    @property
    def out_features(self) -> int:
        return self.geometry.out_features

    @property
    def in_features(self) -> int:
        return self.geometry.in_features

    @property
    def weight(self) -> Tensor:
        """The base's own tensor, in the module's layout; of a fused map the whole."""
        return attribute(self.module, self.parameter or "weight")

    @property
    def matrix(self) -> Tensor:
        """The base's own map as laws see it, (out, in): of a part its rows, of experts the one; of
        codes the weight that they stand for."""
        weight = tensors_of(self.module, self.parameter)["weight"].detach()
        W = (self.whole or self.geometry).read(weight)
        W = W if self.expert is None else W[self.expert]
        return W if self.rows is None else W[slice(*self.rows)]

    @property
    def bias(self) -> Tensor | None:
        """The base's own bias; of a part its rows."""
        path = "bias" if self.parameter is None else beside(self.parameter)
        bias = attribute(self.module, path) if path else None
        if not isinstance(bias, Tensor):
            return None
        return bias if self.rows is None else bias[slice(*self.rows)]

    @property
    def device(self) -> torch.device:
        held = next(own_tensors(self.module), None)
        return (
            next(self.module.parameters(), torch.empty(0)).device if held is None else held.device
        )

    @functools.cached_property
    def bare(self) -> Site:
        """What laws may know of the site: everything but the module; all adapters share it."""
        return replace(self, module=_NOTHING)

    def __str__(self) -> str:
        what = f"{type(self.module).__name__} {self.out_features} x {self.in_features}"
        return f"{self.name} ({what})"


_NOTHING = nn.Identity()


def attribute(module: nn.Module, path: str) -> Any:
    """What lies at this path beneath a module, if anything."""
    parent, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(parent), leaf, None)


def beside(weight: str) -> str:
    """The path of the bias that belongs to a weight; "" where the name does not say."""
    head, dot, leaf = weight.rpartition(".")
    return f"{head}{dot}{leaf.replace('weight', 'bias')}" if "weight" in leaf else ""


def tensors_of(module: nn.Module, parameter: str | None = None) -> dict[str, Tensor]:
    """The module's tensors by name, in its layout; `parameter` names the weight where it reads that
    itself. Codes are read as the weight that they stand for."""
    if parameter is not None:
        path = beside(parameter)
        weight, bias = attribute(module, parameter), path and attribute(module, path)
        return {"weight": weight, "bias": bias} if isinstance(bias, Tensor) else {"weight": weight}
    if quantised.coded(module):
        return quantised.tensors(module)
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    weight = getattr(module, "weight", None)
    return {"weight": weight, **own} if isinstance(weight, Tensor) else own  # or computed


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The module's own parameters and buffers, its children's left out."""
    held = (*module._parameters.values(), *module._buffers.values())
    yield from (tensor for tensor in held if tensor is not None)
