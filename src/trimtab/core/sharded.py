"""Models that FSDP2 has spread over processes: each holds a part of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.method import Values
from trimtab.core.walk import base_parameters, walk


def refuse(model: nn.Module) -> None:
    """What is put on a sharded model is neither sharded nor are its gradients reduced."""
    if any(_spread(parameter) for _, parameter in base_parameters(model)):
        raise InputError(
            "the model is sharded over processes, and an adapter put on it now would not be, so "
            "that each process would train its own: attach or load first, then shard"
        )


def reshard(model: nn.Module) -> None:
    """Put away the gathered parameters that a forward pass may have left: what is written into
    those is lost.
    """
    for _, module in walk(model):
        if hasattr(module, "unshard") and hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece, for which all processes must ask."""
    return _in_one_piece(tensor).detach()


def gathered(p: Values) -> Values:
    """The values in one piece, gradients and all: between a block's passes each process holds a
    part of them."""
    if not any(_spread(tensor) for tensor in p.tensors.values()):
        return p
    every = {name: _in_one_piece(t) for name, t in p.tensors.items()}
    return Values(every, p.training, p.site, p.index, p.total, p.shared)


class Pieces:
    """Live tensors, with their gradients, in one piece; `put_back` spreads what was changed."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Any, Tensor]] = {}

    def gathered(self, sites: Mapping[str, Values]) -> dict[str, Values]:
        return {site: self._values(p) for site, p in sites.items()}

    def _values(self, p: Values) -> Values:
        every = {name: self._one(tensor) for name, tensor in p.tensors.items()}
        return Values(every, p.training, p.site, p.index, p.total, p.shared)

    def _one(self, tensor: Tensor) -> Tensor:
        if not _spread(tensor):
            return tensor
        if id(tensor) not in self.pairs:
            piece = whole(tensor).clone()
            piece.grad = None if tensor.grad is None else whole(tensor.grad)
            self.pairs[id(tensor)] = tensor, piece
        return self.pairs[id(tensor)][1]

    def put_back(self) -> None:
        from torch.distributed.tensor import distribute_tensor

        for tensor, piece in self.pairs.values():
            tensor.copy_(distribute_tensor(piece, tensor.device_mesh, tensor.placements))


def _in_one_piece(tensor: Any) -> Tensor:
    piece: Tensor = tensor.full_tensor() if _spread(tensor) else tensor
    return piece


def _spread(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")
