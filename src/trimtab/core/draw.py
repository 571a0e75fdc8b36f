"""How tensors of small networks start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform(*shape: int, inputs: int) -> Tensor:
    """Between ±1/√inputs, as torch draws the weights of a map of so many inputs."""
    return (2 * torch.rand(shape) - 1) / math.sqrt(inputs)
