"""torchao: plain modules whose weight is a tensor that holds codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.quantised import Library, register


def _knows(module: nn.Module) -> bool:
    own = module._parameters.get("weight")
    return own is not None and type(own).__module__.startswith("torchao.")


def _weight(module: Any) -> Tensor:
    return module.weight.dequantize()


def _form(module: Any) -> str:
    return type(module.weight).__name__


register(Library("torchao", _knows, _weight, _form))


def int8(linear: nn.Linear) -> nn.Module:
    """The map's weight in 8 bits, a scale a row."""
    from torchao.quantization import Int8WeightOnlyConfig

    return _quantised(linear, Int8WeightOnlyConfig())


def int4(linear: nn.Linear) -> nn.Module:
    """The map's weight in 4 bits, a scale for each 32 weights of a row: the form that runs on any
    device, and keeps each code in a byte of its own."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    group = next(size for size in (32, 16, 8, 4, 2, 1) if linear.in_features % size == 0)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))
    return _quantised(linear, config)


def _quantised(linear: nn.Linear, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    holder = nn.Sequential(nn.Linear(*linear.weight.shape[::-1], device="meta"))
    holder[0].weight, holder[0].bias = nn.Parameter(linear.weight.detach()), linear.bias
    quantize_(holder, config)
    return holder[0].requires_grad_(False).train(linear.training)
