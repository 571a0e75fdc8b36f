"""A small model with linear maps of several shapes, and HF PEFT upon the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two maps of one input, then one of another shape; a loss where labels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 16), nn.Linear(12, 16, bias=False)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.out(torch.tanh(self.left(x)) + self.right(x))
        return y if labels is None else Output(nn.functional.cross_entropy(y, labels))


class Output:
    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


TARGETS = ["left", "right", "out"]


def net(dtype: torch.dtype = torch.float32) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Net().to(dtype).eval()


def of_peft(model: nn.Module, name: str) -> Tensor:
    """s B A of HF PEFT's adapter at a site."""
    return model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").detach()


def batches() -> list[Tensor]:
    """Inputs that vary more in some directions than in others."""
    spread = torch.linspace(3, 0.1, 12)
    return [torch.randn(40, 12) * spread for _ in range(4)]
