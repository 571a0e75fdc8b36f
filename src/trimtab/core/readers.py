"""Modules that read weights themselves, their own or their children's, without calling a child.

An edit acts there on the tensor: the module is called with it replaced. What is known: torch's
attention and encoder layer, experts in one 3-D tensor and what routes to them, XLNet's attention,
Mamba's time steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from trimtab.core.site import Geometry, geometry, routes
from trimtab.core.walk import plain, walk


def readers(model: nn.Module) -> Iterator[tuple[str, str, str, Geometry]]:
    """(site, module that reads, parameter beneath it, geometry), outermost readers first."""
    done: list[str] = []
    for name, module in walk(model):
        module = plain(module)
        if any(name.startswith(f"{top}.") for top in done):
            continue
        found = list(_read(module))
        if found:
            done.append(name)
        for parameter, shape in found:
            path = parameter.removesuffix(".weight")
            yield f"{name}.{path}".lstrip("."), name, parameter, shape


def _read(module: nn.Module) -> Iterator[tuple[str, Geometry]]:
    if isinstance(module, nn.TransformerEncoderLayer):
        yield from ((f"self_attn.{path}", shape) for path, shape in _attention(module.self_attn))
        for child in ("linear1", "linear2", "norm1", "norm2"):
            yield f"{child}.weight", geometry(plain(getattr(module, child)))
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module)
    elif type(module).__name__ == "XLNetRelativeAttention":
        yield from _xlnet(module)
    elif type(module).__name__.endswith("MambaMixer") and hasattr(module, "dt_proj"):
        yield "dt_proj.weight", geometry(plain(module.get_submodule("dt_proj")))
    elif "Experts" in type(module).__name__:
        yield from _experts(module)
    elif routes(module):
        yield "weight", Geometry("linear", *module.get_parameter("weight").shape)


def _attention(module: nn.Module) -> Iterator[tuple[str, Geometry]]:
    for path in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = getattr(module, path, None)
        if weight is not None:
            yield path, Geometry("linear", *weight.shape)
    yield "out_proj.weight", geometry(plain(module.get_submodule("out_proj")))


def _xlnet(module: nn.Module) -> Iterator[tuple[str, Geometry]]:
    """q, k, v, r: (d, heads, width) from d; o: (d, heads, width) to d."""
    for path in ("q", "k", "v", "o", "r"):
        shape = tuple(getattr(module, path).shape)
        inner = shape[1] * shape[2]
        if path == "o":
            yield path, Geometry("linear", shape[0], inner, shape=shape)
        else:
            yield path, Geometry("linear", inner, shape[0], transposed=True, shape=shape)


def _experts(module: nn.Module) -> Iterator[tuple[str, Geometry]]:
    """gate_up (experts, 2 width, d) and down (experts, d, width), or either transposed."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(up, nn.Parameter) or not isinstance(down, nn.Parameter) or up.ndim != 3:
        return
    transposed = up.shape[1] == down.shape[2] and up.shape[2] != down.shape[1]
    for path, weight in (("gate_up_proj", up), ("down_proj", down)):
        count, out, inp = weight.shape
        out, inp = (inp, out) if transposed else (out, inp)
        yield path, Geometry("linear", out, inp, transposed=transposed, count=count)
