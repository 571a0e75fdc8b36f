"""What a machine does at best: the arithmetic that a work cannot do without, at the rate of plain
products, measured in the same run."""

from __future__ import annotations

import statistics
import time

import torch

ROWS, INPUTS, OUTPUTS = 1024, 768, 2048


def rate(dtype: torch.dtype = torch.bfloat16, rounds: int = 30) -> float:
    """Operations a second in products of (1024, 768) by (768, 2048), the median."""
    x, W = torch.randn(ROWS, INPUTS).to(dtype), torch.randn(OUTPUTS, INPUTS).to(dtype)
    took = []
    for _ in range(rounds + 5):  # the first few warm up
        began = time.perf_counter()
        torch.nn.functional.linear(x, W)
        took.append(time.perf_counter() - began)
    return 2 * ROWS * INPUTS * OUTPUTS / statistics.median(took[5:])


def frozen(weights: int, tokens: int, forwards: int = 1) -> int:
    """Operations of frozen maps with so many weights: forward, and the gradient of the input."""
    return 2 * weights * tokens * (forwards + 1)


def low_rank(features: int, rank: int, tokens: int) -> int:
    """Operations of LoRA at sites with so many inputs and outputs together: forward, and for each
    factor the gradients of itself and of its input."""
    return 2 * rank * features * tokens * 3


def attention(batch: int, heads: int, tokens: int, width: int, *, causal: bool) -> int:
    """Operations of one attention: two products forward, five backward with the weights again."""
    return 7 * 2 * batch * heads * tokens * tokens * width // (2 if causal else 1)
