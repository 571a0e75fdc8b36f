"""Models that FSDP2 has spread over processes: each holds a part of every parameter."""

from __future__ import annotations

from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.walk import base_parameters, walk


def refuse(model: nn.Module) -> None:
    """What is put on a sharded model is neither sharded nor are its gradients reduced."""
    if any(hasattr(parameter, "full_tensor") for _, parameter in base_parameters(model)):
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
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()
