"""The compiled kernels, built from the C++ beside this file where the package was installed with a
compiler at hand. Nothing needs them: without them, or on another processor, torch computes.

A call takes addresses and sizes; whoever calls keeps the tensors alive and contiguous. The
interpreter's lock is not held meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# p: an address; i: an int, l: one of 64 bits; f: a float; v: nothing.
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "v": None,
}
_SIGNATURES = {
    "int8_here": ("i", ""),
    "int8_bytes": ("l", "ii"),
    "int8_pack": ("v", "ppiipp"),
    "int8_linear": ("v", "piiiippppippfpp"),
    "int8_cross_entropy": ("v", "pipiiipppppppp"),
    "routed_here": ("i", ""),
    "routed": ("v", "pppiiiiipp"),
    "outer": ("v", "ppiiiifp"),
    "attention_here": ("i", ""),
    "attention": ("v", "ppppppfipp"),
    "attention_backward": ("v", "ppppppfippppp"),
    "rowwise_here": ("i", ""),
    "norm": ("v", "pppiifippp"),
    "norm_backward": ("v", "pppiiippp"),
    "activation": ("v", "ipplp"),
    "activation_backward": ("v", "ippplpp"),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, if they are there and can be loaded."""
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        return None
    _offer_threads()
    try:
        kernels = ctypes.CDLL(str(found[0]))
    except OSError:  # built for another machine
        return None
    for name, (result, letters) in _SIGNATURES.items():
        if (function := getattr(kernels, f"trimtab_{name}", None)) is not None:
            function.restype = _TYPES[result]
            function.argtypes = [_TYPES[letter] for letter in letters]
    return kernels


def loaded() -> ctypes.CDLL:
    """The compiled kernels, for who has asked whether they are there."""
    kernels = library()
    assert kernels is not None
    return kernels


def _offer_threads() -> None:
    """The kernels take torch's own threads: two pools would wait for the cores of one another."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf8").splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    own = str(Path(torch.__file__).parent)  # torch.libs lies beside it; others bring theirs
    paths_ = sorted(paths, key=lambda path: (not path.startswith(own), path))
    for path in [*paths_, "libgomp.so.1"][:1]:
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)


@functools.cache
def has(kernel: str) -> bool:
    """Whether this kernel was built, and this processor has the instructions for it."""
    kernels = library()
    if kernels is None:
        return False
    ask = getattr(kernels, f"trimtab_{kernel}_here", None)
    return ask is not None and bool(ask())


def addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def real(*tensors: Tensor | None) -> bool:
    """Whether these hold numbers, in memory that C++ may read: none is empty, stands for another or
    is followed by a tracer."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and all(one is None or _own_memory(one) for one in tensors)
    )


def _own_memory(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.numel() > 0


def floats(*shape: int) -> Tensor:
    """Room for numbers in fp32, whatever torch takes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def is_half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of malloc.h


def keep_memory() -> None:
    """Let the process keep what it has freed: a step frees and takes again the same large pieces,
    and each that comes from the system anew is filled with zeros first. With glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
