"""How tensors of small networks start."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn


def uniform(*shape: int, inputs: int) -> Tensor:
    """Between ±1/√inputs, as torch draws the weights of a map of so many inputs."""
    return (2 * torch.rand(shape) - 1) / math.sqrt(inputs)


def kaiming(
    *shape: int, dtype: torch.dtype | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The same numbers as `torch.nn.Linear` and HF PEFT's LoRA draw for a map of this shape; with a
    generator, on the CPU."""
    empty = torch.empty(shape, dtype=dtype, device=None if generator is None else "cpu")
    bound = _bound(max(1, math.prod(shape[1:])))
    return empty.uniform_(-bound, bound, generator=generator)


@functools.cache
def _bound(inputs: int) -> float:
    """That of `torch.nn.init.kaiming_uniform_`, to the bit, found once for all maps alike."""
    gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    return math.sqrt(3.0) * (gain / math.sqrt(inputs))
