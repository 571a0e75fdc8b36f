"""Targets to sites: by role, by glob, by regular expression, by name."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trimtab.core.adapter import carries, record
from trimtab.core.errors import InputError, SiteNotFound, nearest
from trimtab.core.heads import heads
from trimtab.core.layout import ATTENTION, Run, attentions, outputs, runs
from trimtab.core.method import Method
from trimtab.core.modalities import PARTS
from trimtab.core.modalities import part_of as modality_of
from trimtab.core.modalities import parts as modalities
from trimtab.core.operator import part_of
from trimtab.core.readers import readers
from trimtab.core.site import Geometry, Site, geometry, routes
from trimtab.core.walk import plain, walk

Target = str | re.Pattern[str] | Sequence["str | re.Pattern[str]"]

ROLES = {
    "all-linear": "every linear map but the head",
    "convolutions": "every convolution but the head",
    "attention": "the linear maps of attention",
    "query": "attention's query maps, fused qkv included",
    "key": "attention's key maps, fused qkv included",
    "value": "attention's value maps, fused qkv included",
    "mlp": "the linear maps of the feed-forward layers",
    "down": "the feed-forward maps that narrow",
    "head": "the linear maps of the model's head",
    "router": "the maps that choose experts",
    "biases": "everything that has a bias, but the head",
    "norms": "the normalisations",
    "embedding": "the input embedding of tokens",
    "attention-output": "the last linear map of each attention sublayer",
    "mlp-output": "the last linear map of each feed-forward sublayer",
    "self-attention": "attentions whose keys and values a prefix can extend",
    "cross-attention": "a decoder's attentions over its encoder",
    "block": "the blocks of each stack",
    "stack": "runs of blocks",
    "input": "the stack that takes the input's token embeddings",
    "decoder-input": "the decoder of an encoder-decoder, where it takes token embeddings",
}

_QKV = r"c_attn|qkv|qkv_proj|query_key_value|in_proj|in_proj_weight|Wqkv"
_PARTS = {
    "query": re.compile(rf"(q|query|q_proj|q_lin|query_proj|q_proj_weight|to_q|add_q_proj|{_QKV})"),
    "key": re.compile(rf"(k|key|k_proj|k_lin|key_proj|k_proj_weight|to_k|add_k_proj|{_QKV})"),
    "value": re.compile(rf"(v|value|v_proj|v_lin|value_proj|v_proj_weight|to_v|add_v_proj|{_QKV})"),
}
_FEED = re.compile(r"ff|ff_context|ffn|mlp")
_PART = re.compile(r"(.*)\[(query|key|value)\]")
_CONTIGUOUS = re.compile(r"c_attn|qkv|qkv_proj|in_proj|in_proj_weight|Wqkv")


def sites(model: nn.Module) -> list[Site]:
    """Every place where an edit can act, with its roles, in the model's order; tied modules once.
    Parts of fused maps, `c_attn[query]`, have no role: they are chosen by name. A model that
    carries adapters is gone over again only where its modules or tensors are others.
    """
    if not carries(model):
        return _listed(model)
    known, made = record(model), [model, *_made_of(model)]
    if known.listed is None or known.listed[0] != made:
        known.listed = made, _listed(model)
    return list(known.listed[1])


def _made_of(model: nn.Module) -> list[object]:
    made: list[object] = []
    for name, module in walk(model):
        module = plain(module)
        made += name, id(module)
        for parameter in module._parameters.values():
            if parameter is not None:
                made += id(parameter), parameter.shape
    return made


def _listed(model: nn.Module) -> list[Site]:
    shape = Shape(model)
    found = []
    for module, paths in _modules(model):
        for site in shape.at(module, paths):
            found += [site, *_parts(site, model)]
    return found


def _modules(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Every module of the base with all its names; the root is called `root`."""
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in walk(model, once=False):
        module = plain(module)
        modules[id(module)] = module
        paths.setdefault(id(module), []).append(name or ROOT)
    return [(modules[key], names) for key, names in paths.items()]


class Shape:
    """What is known of a model as a whole when its sites are listed."""

    def __init__(self, model: nn.Module) -> None:
        self.runs = runs(model)
        self.outputs = outputs(model, self.runs)
        self.attentions = {name: (shape, role) for name, shape, role in attentions(model)}
        self.readers: dict[str, list[tuple[str, str, Geometry]]] = {}
        self.read: set[str] = set()
        for site, reader, parameter, shape in readers(model):
            self.readers.setdefault(reader or ROOT, []).append((site, parameter, shape))
            self.read.add(site)
        self.heads = tuple(f"{head}." for head in heads(model))
        self.blocks = {block for run in self.runs for block in run.blocks}
        self.embeddings = _embeddings(model, self.runs)
        self.modalities = modalities(model)

    def at(self, module: nn.Module, paths: list[str]) -> Iterator[Site]:
        """The sites at one module: its own, and those of tensors that it reads itself."""
        homes = tuple("" if path == ROOT else path for path in paths)
        if paths[0] not in self.read:
            site = Site(paths[0], module, self._geometry(module, paths[0]), homes=homes)
            yield self._with_roles(dataclasses.replace(site, paths=tuple(paths)))
        for name, parameter, shape in self.readers.get(paths[0], ()):
            site = Site(name, module, shape, parameter=parameter, homes=homes, paths=(name,))
            yield self._with_roles(site)

    def _geometry(self, module: nn.Module, name: str) -> Geometry:
        for run in self.runs:
            if name == (run.name or ROOT):
                return Geometry("stack", run.width, run.width)
        if name in self.attentions:
            shape, run = self.attentions[name][0], self._run(name)
            return dataclasses.replace(shape, in_features=run.width) if run else shape
        if name in self.blocks:
            width = next(run.width for run in self.runs if name in run.blocks)
            return Geometry("block", width, width)
        return geometry(module)

    def _run(self, name: str) -> Run | None:
        """The run of blocks that a module lies in."""
        return next((run for run in self.runs if f"{name}.".startswith(run.name)), None)

    def _with_roles(self, site: Site) -> Site:
        run = self._run(site.name)
        output = self.outputs.get(site.name)
        return dataclasses.replace(
            site,
            roles=self._roles(site),
            stack=run and (run.name or ROOT),
            batch_first=run is None or run.batch_first,
            entry=output.entry if output else None,
            part=modality_of(site.name, self.modalities),
        )

    def _roles(self, site: Site) -> frozenset[str]:
        kind = site.geometry.kind
        if any(f"{path}.".startswith(self.heads) for path in site.paths if self.heads):
            return frozenset({"head"} if kind == "linear" else ())
        found = set()
        if site.bias is not None and kind in {"linear", "norm", "conv"}:
            found.add("biases")
        if kind == "linear":
            found |= {"router"} if routes(site.module) else {"all-linear"} | _place(site)
        if kind == "conv":
            found.add("convolutions")
        if kind == "norm":
            found.add("norms")
        if id(site.module) in self.embeddings:
            found.add("embedding")
        if site.name in self.outputs:
            found.add(self.outputs[site.name].role)
        if site.name in self.attentions:
            found.add(self.attentions[site.name][1])
        if site.name in self.blocks:
            found.add("block")
        for run in self.runs:
            if site.name == (run.name or ROOT):
                found |= {"stack"} | ({_INPUTS[run.decoder]} if run.takes else set())
        return frozenset(found)


_INPUTS = {False: "input", True: "decoder-input"}
ROOT = "root"


def input_embedding(model: nn.Module) -> nn.Module | None:
    """What embeds the model's input, if it says so: many that see or hear have no such module, or
    only a parameter."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        found = find() if find is not None else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _embeddings(model: nn.Module, runs_: list[Run]) -> set[int]:
    """The input embedding of tokens; where its weight is tied to those of stacks (T5, BART), the
    modules that they call."""
    found = input_embedding(model)
    if found is None or geometry(plain(found)).kind != "embedding":
        return set()
    weight = plain(found).weight
    within = [
        module
        for run in runs_
        for _, module in walk(model.get_submodule(run.name))
        if geometry(plain(module)).kind == "embedding" and plain(module).weight is weight
    ]
    return {id(plain(module)) for module in within or [found]}


def _place(site: Site) -> set[str]:
    """Attention or feed-forward, by the names on the way down; only within a numbered block."""
    *way, leaf = site.name.split(".")
    if not any(part.isdigit() for part in way):
        return set()
    named = (part for part in reversed(way) if ATTENTION.search(part) or _FEED.fullmatch(part))
    if ATTENTION.search(next(named, "")):  # the innermost: diffusion's blocks lie in `attentions`
        return {"attention"} | {part for part, names in _PARTS.items() if names.fullmatch(leaf)}
    return {"mlp", "down"} if site.out_features < site.in_features else {"mlp"}


def _parts(site: Site, model: nn.Module) -> Iterator[Site]:
    """Query, key and value of a fused map that keeps them one after the other."""
    leaf, g = site.name.rpartition(".")[2], site.geometry
    if g.kind != "linear" or g.count or not _CONTIGUOUS.fullmatch(leaf):
        return
    sizes = _sizes(g, model.get_submodule(site.name.rpartition(".")[0]))
    if sizes is None:
        return
    start = 0
    for part, size in zip(("query", "key", "value"), sizes, strict=True):
        rows = (start, start + size)
        yield dataclasses.replace(
            site,
            name=f"{site.name}[{part}]",
            paths=tuple(f"{path}[{part}]" for path in site.paths),
            geometry=part_of(g, rows),
            rows=rows,
            whole=g,
            roles=frozenset(),
            entry=None,
        )
        start += size


_OTHERWISE = re.compile("GPTBigCode|CodeGen")
"""Attentions whose fused rows go by heads, or are query, value, key in blocks."""


def _sizes(g: Geometry, attention: nn.Module) -> tuple[int, int, int] | None:
    """The rows of query, key and value: by the heads that the configuration counts, or thirds."""
    if _OTHERWISE.match(type(plain(attention)).__name__):
        return None
    config = getattr(attention, "config", None)
    heads = getattr(config, "num_attention_heads", None) or 0
    kv = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or 0
    even = g.out_features == 3 * g.in_features
    if not (width and g.out_features == (heads + 2 * kv) * width):  # no width is told, or another's
        if even and heads == kv:
            return (g.in_features,) * 3
        if not heads or g.out_features % (heads + 2 * kv):
            return None
        width = g.out_features // (heads + 2 * kv)
    return heads * width, kv * width, kv * width


def match(model: nn.Module, target: Target, method: Method) -> list[Site]:
    """The sites that a target names and the method can act on, in the model's order.

    A target is a role (see `ROLES`); a part of a model of several modalities (`vision`, `audio`,
    `text`, `connector`), whose linear maps are meant, or both (`vision:attention`); a glob over
    full names (`*.layer.[0-3].*`), a regular expression over full names (`re:…` or a compiled
    pattern), or a name: a module's full name or the end of it. A list is the union. Raises
    `SiteNotFound` where one of them finds nothing, and `InputError` where there is none.
    """
    return among(sites(model), target, method)


def among(known: list[Site], target: Target, method: Method) -> list[Site]:
    """`match`, of sites that are listed already: listing them goes over the whole model."""
    asked = [_whole(one, known) for one in _each(target)]
    if not asked or "" in asked:
        raise InputError(
            f"{method.name}: the target {target!r} is empty, and names nothing: give a role, a "
            "name or a pattern, or leave it out for the method's own"
        )
    wanted: set[str] = set()
    for one in asked:
        named = [site for site in known if _selects(one, site)]
        fitting = [site for site in named if method.accepts(site) is None]
        if not fitting:
            raise SiteNotFound(_explain(one, named, known, method))
        wanted |= {site.name for site in fitting}
    return [site for site in known if site.name in wanted]


def _whole(target: str | re.Pattern[str], known: list[Site]) -> str | re.Pattern[str]:
    """A part by its name alone is all linear maps of it, where the model has parts."""
    if isinstance(target, str) and target in PARTS and any(site.part for site in known):
        return f"{target}:all-linear"
    return target


def _each(target: Target) -> Iterable[str | re.Pattern[str]]:
    return [target] if isinstance(target, str | re.Pattern) else target


def _selects(target: str | re.Pattern[str], site: Site) -> bool:
    return any(_predicate(target, site)(path) for path in site.paths)


def _predicate(target: str | re.Pattern[str], site: Site) -> Callable[[str], bool]:
    if isinstance(target, str) and (part := _PART.fullmatch(target)):
        whole, suffix = part[1], f"[{part[2]}]"
        inner = _predicate(whole, dataclasses.replace(site, roles=frozenset(), rows=None))
        return lambda path: path.endswith(suffix) and inner(path.removesuffix(suffix))
    if site.rows is not None:
        return lambda path: False
    if isinstance(target, re.Pattern):
        return lambda path: target.fullmatch(path) is not None
    if target in ROLES:
        return lambda path: target in site.roles
    if (within := _within(target)) is not None:
        inner = _predicate(within[1], site)
        return lambda path: site.part == within[0] and inner(path)
    if target.startswith("re:"):
        pattern = _compile(target[3:])
        return lambda path: pattern.fullmatch(path) is not None
    if any(mark in target for mark in "*?["):
        return lambda path: fnmatchcase(path, target) or fnmatchcase(path, f"*.{target}")
    return lambda path: f".{path}".endswith(f".{target}")


def _within(target: str) -> tuple[str, str] | None:
    """The part and what is meant of it, of a target such as `vision:attention`."""
    part, colon, inner = target.partition(":")
    return (part, inner) if colon and part in PARTS else None


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"target 're:{pattern}' is no regular expression: {error}") from None


def _explain(
    target: str | re.Pattern[str], named: list[Site], known: list[Site], method: Method
) -> str:
    text = target.pattern if isinstance(target, re.Pattern) else target
    if named:
        first = named[0]
        return (
            f"{method.name} cannot act at {first.name!r} ({type(first.module).__name__}), which "
            f"{text!r} names: {method.accepts(first)}"
        )
    if (part := _PART.fullmatch(text)) and any(_selects(part[1], site) for site in known):
        return (
            f"{part[1]!r} has no part {part[2]!r}: its rows are not query, key, value one after "
            "the other, or not known to be; choose it whole"
        )
    there = sorted({site.part for site in known if site.part and "all-linear" in site.roles})
    if (within := _within(text)) is not None and within[0] not in there:
        has = f"its parts are {', '.join(there)}" if there else "it is of one modality"
        return f"this model has no part {within[0]!r} ({PARTS[within[0]]}); {has}"
    if text in ROLES:
        others = any("convolutions" in site.roles for site in known) and text == "all-linear"
        instead = "take 'convolutions', or name modules" if others else "name modules instead"
        return f"no site has the role {text!r} ({ROLES[text]}) in this model; {instead}"
    with contextlib.suppress(re.error):
        fitting = [site for site in known if method.accepts(site) is None]
        if any(re.fullmatch(text, path) for site in fitting for path in site.paths):
            return f"no site matches {text!r}; as a regular expression some do: 're:{text}'"
    leaves: dict[str, int] = {}
    for site in known:
        if method.accepts(site) is None:
            leaf = site.name.rpartition(".")[2]
            leaves[leaf] = leaves.get(leaf, 0) + 1
    close = nearest(text.rpartition(".")[2], [*leaves, *ROLES])
    for leaf, count in leaves.items():
        close = close.replace(f"{leaf!r}", f"{leaf!r} ({count} site{'s' if count > 1 else ''})")
    return f"no site matches {text!r}; {close}"
