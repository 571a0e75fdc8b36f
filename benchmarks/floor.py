"""What a machine does at best: the arithmetic that a work cannot do without, at the rate of the
fastest plain products that it has, of bf16 or of eight-bit integers, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ROWS, INPUTS, OUTPUTS = 1024, 768, 2048


def rate(rounds: int = 30) -> float:
    """Operations a second in products of (1024, 768) by (768, 2048): the fastest kind's median."""
    x, W = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS)
    whole = [(10 * one).round().clamp(-127, 127).to(torch.int8) for one in (x, W.mT.contiguous())]
    kinds: tuple[tuple[Callable[..., object], tuple[torch.Tensor, ...]], ...] = (
        (torch.nn.functional.linear, (x.bfloat16(), W.bfloat16())),
        (torch._int_mm, (whole[0], whole[1])),
    )
    return max(_rate(call, given, rounds) for call, given in kinds)


def _rate(call: Callable[..., object], given: tuple[torch.Tensor, ...], rounds: int) -> float:
    took = []
    for _ in range(rounds + 5):  # the first few warm up
        began = time.perf_counter()
        call(*given)
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
