"""Small models are pre-trained here by one loop: the same seed, the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Drawn = Callable[[int], Tensor]  # of n examples, the places of a batch


def trained(
    model: Any,
    steps: int,
    loss: Callable[[Drawn], Tensor],
    *,
    batch: int = 64,
    lr: float = 1e-3,
    clip: float = math.inf,
) -> Any:
    """`steps` of AdamW under a rate that rises and falls; `loss` asks which examples are drawn.
    Gradients of a larger norm than `clip` are brought to it."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> Tensor:
        return torch.randint(n, (batch,), generator=generator)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(drawn).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
    return model.eval()
