"""The shape of a model, found without knowing its architecture: its stacks of blocks, the last maps
of their sublayers, its attentions.

A run of blocks is an outermost list of modules of one class that hold linear maps. Within a block
the width is that of its last map; an attention's output is its last map of that width, a
feed-forward layer's the last of those outside attention.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from trimtab.core.site import Geometry, geometry
from trimtab.core.stack import parameters_of
from trimtab.core.walk import plain, walk

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"encdec|cross|encoder_attn|encoder_attention", re.IGNORECASE)
_TABLE = re.compile(r"position|embed_pos|pos_emb|wpe", re.IGNORECASE)
_TIME_FIRST = ("XLNet",)  # layers that keep positions before examples
_HEADS = ("num_key_value_heads", "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim", "attention_head_dim", "d_head")


@dataclass(frozen=True)
class Run:
    """A stack: `name` is the module that takes its input, `leave` the one whose output is its
    blocks'. `takes` tells whether it embeds tokens, `decoder` whether it reads another's output.
    """

    name: str
    leave: str
    blocks: tuple[str, ...]
    takes: bool
    decoder: bool
    width: int
    batch_first: bool


@dataclass(frozen=True)
class Output:
    """The last map of a sublayer: its role, and the map that reads what the sublayer reads."""

    role: str
    entry: str


def runs(model: nn.Module) -> list[Run]:
    """The stacks of a model, in its order."""
    named = {name: plain(module) for name, module in walk(model)}
    lists = [name for name, module in named.items() if _blocks(module)]
    outermost = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    return [_run(model, named, name, outermost) for name in outermost]


def _blocks(module: nn.Module) -> bool:
    """Whether this is a list of blocks: modules of one class, each with linear maps within."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    items = [plain(item) for item in module]
    if not items or len({type(item) for item in items}) > 1:
        return False
    if isinstance(module, nn.Sequential) and len(items) < 2:
        return False
    first = items[0]
    inside = any(child is not first and _linear(child) for _, child in walk(first))
    return inside and not isinstance(first, nn.ModuleList | nn.Sequential)


def _linear(module: nn.Module) -> bool:
    return geometry(plain(module)).kind == "linear"


def _run(model: nn.Module, named: dict[str, nn.Module], blocks: str, lists: list[str]) -> Run:
    leave = blocks.rpartition(".")[0]
    name, above = leave, leave
    while True:
        inside = [other for other in lists if other.startswith(f"{above}." if above else "")]
        if len(inside) > 1:
            break
        if {"input_ids", "inputs_embeds"} <= set(parameters_of(named[above])):
            name = above
            break
        if not above:
            break
        above = above.rpartition(".")[0]
    arguments = set(parameters_of(named[name]))
    items = tuple(f"{blocks}.{key}" for key in named[blocks]._modules if key != "deltas")
    decodes = any(_CROSS.search(path) for path in named if path.startswith(f"{blocks}."))
    takes = {"input_ids", "inputs_embeds"} <= arguments
    width = _maps(items[0], named[items[0]])[-1][1].out_features
    first = not type(named[name]).__name__.startswith(_TIME_FIRST)
    return Run(name, leave, items, takes, decodes, width, first)


def tables(stack: nn.Module) -> list[nn.Embedding]:
    """The embeddings of learned positions beneath a stack."""
    found = {name: plain(module) for name, module in walk(stack)}
    return [
        module
        for name, module in found.items()
        if isinstance(module, nn.Embedding) and _TABLE.search(name.rpartition(".")[2])
    ]


def outputs(model: nn.Module, runs_: list[Run]) -> dict[str, Output]:
    """The last maps of the sublayers of all blocks, by name."""
    found: dict[str, Output] = {}
    for run in runs_:
        for block in run.blocks:
            found |= _of_block(block, model.get_submodule(block))
    return found


def _maps(path: str, block: nn.Module) -> list[tuple[str, Geometry]]:
    """The linear maps of a block, by name, in order of definition."""
    return [
        (f"{path}.{name}", geometry(plain(module)))
        for name, module in walk(block)
        if _linear(module)
    ]


def _of_block(path: str, block: nn.Module) -> dict[str, Output]:
    maps = dict(_maps(path, block))
    width = next(reversed(maps.values())).out_features
    groups: dict[str, list[str]] = {}
    for name in maps:
        groups.setdefault(_sublayer(path, name), []).append(name)
    found = {}
    for sublayer, names in groups.items():
        last = [name for name in names if maps[name].out_features == width]
        entries = [name for name in names if maps[name].in_features == width]
        if last and (len(names) > 1 or not sublayer):
            role = "attention-output" if sublayer else "mlp-output"
            found[last[-1]] = Output(role, (entries or names)[0])
    return found


def _sublayer(block: str, name: str) -> str:
    """The outermost part of the way from the block down that is called attention, or ""."""
    way = name.removeprefix(f"{block}.").split(".")
    for depth, part in enumerate(way[:-1]):
        if ATTENTION.search(part):
            return ".".join([block, *way[: depth + 1]])
    return ""


def attentions(model: nn.Module) -> Iterator[tuple[str, Geometry, str]]:
    """(name, geometry, role) of every module that computes attention through transformers'
    registry of attention functions."""
    for name, module in walk(model):
        module = plain(module)
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
            continue
        heads, width = _number(module, _HEADS), _number(module, _WIDTH)
        if heads and width:
            shape = Geometry("attention", heads * width, heads * width, shape=(heads, width))
            leaf = name.rpartition(".")[2]
            crosses = _CROSS.search(leaf) or getattr(module, "is_cross_attention", False)
            crosses = crosses or type(module).__name__.endswith("CrossAttention")
            yield name, shape, "cross-attention" if crosses else "self-attention"


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0
