"""The trained parameters of one method at one site."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.method import Method, Values
from trimtab.core.site import Site


class Delta(nn.Module):
    """One method's parameters at one site. Trained ones are kept in fp32, whatever the base's
    dtype, and cast down at use, so that small updates are not rounded away.
    """

    def __init__(self, method: Method, site: Site) -> None:
        super().__init__()
        self.method = method
        self.exact: frozenset[str] = frozenset()
        for name, param in method.init(site).items():
            value = param.value.detach().to(site.device)
            if param.trained:
                master = value.to(torch.promote_types(value.dtype, torch.float32))
                self.register_parameter(name, nn.Parameter(master))
            else:
                self.register_buffer(name, value)
            if param.exact:
                self.exact |= {name}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the delta by name: what is saved."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def _apply(self, fn: Any, recurse: bool = True) -> Delta:
        """`.to(bfloat16)` moves the masters and leaves them their precision."""
        masters = {name: p.data for name, p in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype != torch.promote_types(parameter.dtype, torch.float32):
                parameter.data = masters[name].to(parameter.device)
        return self

    def values(self, dtype: torch.dtype) -> Values:
        """The parameters for use in a computation of this dtype; gradients flow to the masters."""
        cast = {name: self._cast(name, tensor, dtype) for name, tensor in self.tensors().items()}
        return Values(cast, self.training)

    def _cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if name in self.exact or not (tensor.is_floating_point() and dtype.is_floating_point):
            return tensor
        return tensor.to(dtype)

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(t.shape)}" for name, t in self.tensors().items())
        return f"{self.method}, {shapes}"
