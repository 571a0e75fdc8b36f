"""How the cost of a step with LoRA grows with model, batch, length, rank, sites and adapters.

    python benchmarks/growth.py [--rounds 5]

Forward and backward of a Llama of width 256 with 4 blocks and random weights in bf16, 4 x 128
tokens, LoRA of rank 8 on all linear maps; one of its sizes is changed at a time, the sizes in turn,
medians of rounds. The slope is that of the seconds' logarithm over the size's, between the two
largest: 1 is linear, below 1 something fixed is shared by more. Beside it that of full
fine-tuning's, where there is one: attention grows with the square of the length whatever is
trained. Writes results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from record import write
from torch import nn

import trimtab

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """A step's sizes. `shape` is (width, blocks)."""

    shape: tuple[int, int] = (256, 4)
    batch: int = 4
    length: int = 128
    rank: int = 8
    to: str = "all-linear"
    adapters: int = 1
    mixed: int = 0


SIZES: dict[str, tuple[Work, ...]] = {
    "blocks": tuple(Work(shape=(256, n)) for n in (2, 4, 8, 16)),
    "width": tuple(Work(shape=(n, 4)) for n in (128, 256, 512, 1024)),
    "batch": tuple(Work(batch=n) for n in (2, 4, 8, 16, 32)),
    "length": tuple(Work(length=n) for n in (64, 128, 256, 512, 1024)),
    "rank": tuple(Work(rank=n) for n in (4, 16, 64, 256)),
    "sites": tuple(Work(to=f"*.layers.[0-{n - 1}].*_proj") for n in (1, 2, 4)),
    "adapters on the model": tuple(Work(adapters=n) for n in (1, 4, 16, 64)),
    "adapters in a batch": tuple(Work(batch=32, adapters=n, mixed=n) for n in (1, 4, 16, 32)),
}
TRAINS_WHOLE = ("blocks", "width", "batch", "length")  # what full fine-tuning knows as well


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    curves: dict[str, Any] = {}
    for name, works in SIZES.items():
        sizes = [size(name, work) for work in works]
        curves[name] = {"sizes": sizes, **curve([adapted(work) for work in works], options.rounds)}
        if name in TRAINS_WHOLE:
            full = [trained_whole(work) for work in works]
            curves[name]["full"] = curve(full, options.rounds)
        for one in (curves[name], curves[name].get("full", {})):
            if one:
                one["slope"] = slope(sizes, one["seconds"])
        print(name, json.dumps(curves[name]), flush=True)
    curves["attaching"] = attaching()
    write("growth", {"work": (__doc__ or "").split("\n\n")[2].replace("\n", " "), "curves": curves})


def size(name: str, work: Work) -> int:
    """Of a model its parameters."""
    match name:
        case "blocks" | "width":
            return sum(parameter.numel() for parameter in llama(work).model.layers.parameters())
        case "sites":
            return len(trimtab.match(llama(work), work.to, trimtab.LoRA()))
        case "adapters on the model" | "adapters in a batch":
            return work.adapters
    return getattr(work, name)


def llama(work: Work) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, blocks = work.shape
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
    )
    return LlamaForCausalLM(config).bfloat16().train()


def adapted(work: Work) -> Call:
    model = llama(work)
    method = trimtab.LoRA(rank=work.rank)
    for number in range(work.adapters):
        trimtab.attach(model, method, work.to, name=f"a{number}")
    trimtab.kernels.blockwise(model)
    if not work.mixed:
        return step(model, work)
    trimtab.activate(model, trimtab.Route(*(f"a{number}" for number in range(work.adapters))))
    names = [f"a{number % work.mixed}" for number in range(work.batch)]
    return step(model, work, route=names)


def trained_whole(work: Work) -> Call:
    model = llama(work)
    trimtab.kernels.blockwise(model)
    return step(model, work)


def step(model: nn.Module, work: Work, **facts: Any) -> Call:
    ids = torch.randint(1000, (work.batch, work.length))

    def call() -> None:
        model(input_ids=ids, labels=ids, **facts).loss.backward()
        model.zero_grad()

    return call


def curve(calls: list[Call], rounds: int) -> dict[str, Any]:
    took: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):  # the first warms up
        for call, times in zip(calls, took, strict=True):
            began = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - began)
    return {"seconds": [round(statistics.median(times), 5) for times in took]}


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the logarithms, between the two largest."""
    return round(math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2]), 3)


def attaching(most: int = 256) -> dict[str, Any]:
    """Seconds to put on one more adapter, and to switch, when so many are there."""
    model = llama(Work())
    one_more: dict[int, float] = {}
    switch: dict[int, float] = {}
    times: list[float] = []
    for number in range(most):
        began = time.perf_counter()
        trimtab.attach(model, trimtab.LoRA(rank=Work.rank), name=f"a{number}")
        times.append(time.perf_counter() - began)
        if (there := number + 1) in (4, 16, 64, 256):
            one_more[there] = round(statistics.median(times[-there // 2 :]), 5)
            began = time.perf_counter()
            for _ in range(20):
                trimtab.activate(model, "a0")
                trimtab.activate(model, f"a{number}")
            switch[there] = round((time.perf_counter() - began) / 40, 6)
    return {
        "sizes": [*one_more],
        "seconds": [*one_more.values()],
        "switching_seconds": [*switch.values()],
    }


if __name__ == "__main__":
    main()
