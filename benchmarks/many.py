"""Many adapters on one base: what a mixed batch costs against the base alone, what registering and
switching take; beside HF PEFT in the same run.

    python benchmarks/many.py [--adapters 64] [--registered 1000] [--rounds 5] [--layers 12]

The work: a Llama of width 768 with random weights in bf16, 64 examples of 32 tokens in inference,
LoRA of rank 8 on all linear maps, an adapter of its own for each example. Medians of alternating
rounds. The vocabulary is small, so that the head weighs nothing. HF PEFT has a copy of the model
of its own, and registers only as many adapters as are mixed.
Writes results/many.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from record import write
from torch import nn

import trimtab
from trimtab.core.adapter import record
from trimtab.core.compose import Composition

EXAMPLES, TOKENS, RANK, VOCABULARY = 64, 32, 8, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--registered", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    base = llama(options.layers)
    theirs, peft_seconds = peft(copy.deepcopy(base), options.adapters)
    ours = copy.deepcopy(base)
    seconds = register(ours, range(options.adapters))
    result: dict[str, Any] = {
        "work": f"{options.layers} layers, {EXAMPLES} x {TOKENS} tokens, rank {RANK}",
        "seconds_to_register": {"trimtab": seconds, "HF PEFT": peft_seconds},
        "adapters": options.adapters,
        "against_base": compare(base, ours, theirs, options),
    }
    more = range(options.adapters, options.registered)
    result["registered"] = options.registered
    result["seconds_to_register_all"] = seconds + register(ours, more)
    result["seconds_to_touch_their_memory"] = touching(ours)
    result["against_base_with_all_registered"] = compare(base, ours, None, options)
    result["switching_ms"] = switching(ours, options.registered)
    write("many", result)
    print(json.dumps(result))


def llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)


def register(model: nn.Module, numbers: range) -> float:
    """Seconds to put so many fresh adapters on; B is moved, so that each changes the output, and
    they are frozen, as those are that a server loads."""
    began = time.perf_counter()
    for number in numbers:
        trimtab.attach(model, trimtab.LoRA(rank=RANK), name=f"a{number}")
    took = time.perf_counter() - began
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.01)
    model.requires_grad_(False)
    return round(took, 3)


def touching(model: nn.Module) -> float:
    """Seconds to write as much fresh memory once, in a process of its own."""
    size = sum(
        p.numel() * p.element_size()
        for a in record(model).adapters.values()
        for p in a.parameters()
    )
    program = (
        "import time, torch; "
        f"memory = torch.empty({size}, dtype=torch.uint8); "
        "began = time.perf_counter(); memory.fill_(1); print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return round(float(done.stdout), 3)


def peft(model: nn.Module, count: int) -> tuple[nn.Module, float]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    began = time.perf_counter()
    wrapped = get_peft_model(model, config, adapter_name="a0", autocast_adapter_dtype=False)
    for number in range(1, count):
        wrapped.add_adapter(f"a{number}", config, autocast_adapter_dtype=False)
    return wrapped.eval(), round(time.perf_counter() - began, 3)


def compare(base: nn.Module, ours: nn.Module, theirs: Any, options: Any) -> dict[str, float]:
    """Medians over the base's own time, in the same run."""
    ids = torch.randint(VOCABULARY, (EXAMPLES, TOKENS))
    names = [f"a{number % options.adapters}" for number in range(EXAMPLES)]
    everyone = trimtab.Route(*record(ours).adapters)

    turns: dict[str, tuple[Composition, Callable[[], object]]] = {
        "base": (None, lambda: base(input_ids=ids)),
        "one adapter": ("a0", lambda: ours(input_ids=ids)),
        "mixed": (everyone, lambda: ours(input_ids=ids, route=names)),
    }
    if theirs is not None:
        turns["HF PEFT, mixed"] = (None, lambda: theirs(input_ids=ids, adapter_names=names))
    took: dict[str, list[float]] = {name: [] for name in turns}
    with torch.no_grad():
        for _ in range(options.rounds + 1):  # the first is not counted
            for name, (composition, call) in turns.items():
                trimtab.activate(ours, composition)  # once a server has started, not once a batch
                began = time.perf_counter()
                call()
                took[name].append(time.perf_counter() - began)
    median = {name: statistics.median(times[1:]) for name, times in took.items()}
    alone = median.pop("base")
    ratios = {name: round(seconds / alone, 3) for name, seconds in median.items()}
    return {"base_ms": round(1000 * alone, 1), **ratios}


def switching(model: nn.Module, count: int) -> float:
    """Median milliseconds of `activate`."""
    times = []
    for number in range(0, count, max(1, count // 50)):
        began = time.perf_counter()
        trimtab.activate(model, f"a{number}")
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 4)


if __name__ == "__main__":
    main()
