"""What the machine is, and what it does well, by measurement."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.core.errors import InputError
from trimtab.kernels import attention

_GAIN = 1.2  # how much faster bf16 products must be before the base is kept in bf16


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def facts() -> dict[str, Any]:
    """The machine, for the record of a run. No names of hosts or users."""
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("trimtab", "torch", "transformers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _memory() -> int | None:
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Peak bytes of this process: on the accelerator where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def choose_dtype(width: int) -> tuple[str, dict[str, float]]:
    """bf16 where its matrix products are faster than fp32's, by a short measurement.

    `width` is the model's hidden width. Returns the dtype and the milliseconds of one product each.
    """
    where = device()
    x, W = torch.randn(512, width, device=where), torch.randn(4 * width, width, device=where)
    calls = {
        name: _product(x.to(dtype), W.to(dtype))
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    took = measure(calls, rounds=7)
    faster = took["bfloat16"] * _GAIN < took["float32"]
    return ("bfloat16" if faster else "float32"), took


def _product(x: torch.Tensor, W: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.nn.functional.linear(x, W)


def choose_attention(
    model: nn.Module, names: Sequence[str], step: Callable[[], object]
) -> tuple[str, dict[str, float]]:
    """The implementation of attention with which a training step is fastest, by measurement."""

    def with_(name: str) -> Callable[[], object]:
        def call() -> object:
            take_attention(model, name)
            return step()

        return call

    took = measure({name: with_(name) for name in names}, rounds=3)
    return min(took, key=lambda name: took[name]), took


def take_attention(model: Any, name: str) -> None:
    """From now on the model computes attention by this implementation."""
    if name == attention.NAME:
        attention.blockwise(model)
    elif not hasattr(model, "set_attn_implementation"):
        raise InputError(f"a {type(model).__name__} has no attention that could be chosen")
    else:
        model.set_attn_implementation(name)


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, alternating, after one round to warm up."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                took[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(times), 3) for name, times in took.items()}
