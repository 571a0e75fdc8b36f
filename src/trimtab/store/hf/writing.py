"""From an adapter to the files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names, Prefix, Prompt
from trimtab.core.site import Geometry
from trimtab.match import sites
from trimtab.methods.whole import Whole
from trimtab.store import native
from trimtab.store.files import write_json, write_tensors
from trimtab.store.hf import experts, parameters, prompts, pruned
from trimtab.store.hf.configuration import about, config_of, plain, task_type
from trimtab.store.hf.fields import BIASES, CONFIG, ROWS, arguments
from trimtab.store.hf.reading import PREFIX, REMEMBERED, ROOT, TENSORS, TOKEN_LEAF
from trimtab.store.hf.targets import modules, tied


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """The adapter in HF PEFT's format, or an `InputError` that says what that format cannot
    hold.
    """
    config, tensors = content(model, adapter)
    write_tensors(folder / TENSORS, tensors, remember(model, adapter))
    write_json(folder / CONFIG, config)


def remember(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """What that format has no place for but beside the tensors."""
    kept = {"name": adapter.name, "base": native.base(model, adapter)}
    return {REMEMBERED: json.dumps(kept)}


def content(model: nn.Module, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors that the files hold."""
    members = [delta.alike() for delta in adapter.members]
    if members != adapter.members:
        entries = tuple((delta.site.name, delta.method) for delta in members)
        adapter = dataclasses.replace(adapter, entries=entries, members=members)
    beside = {Whole.name, BIASES}
    acting = {site: method for site, method in adapter.entries if method.name not in beside}
    kinds = {method.name for method in acting.values()}
    if len(kinds) > 1:  # whose configuration may name tokens
        acting = {site: method for site, method in acting.items() if method.name != ROWS}
        tokens = kinds & {ROWS}
        kinds -= tokens if all(one.hf and one.hf.tokens for one in acting.values()) else set()
    if len(kinds) != 1 or (names := next(iter(acting.values())).hf) is None:
        every = {method.name for _, method in adapter.entries} - {Whole.name}
        raise InputError(
            f"adapter {adapter.name!r} ({', '.join(sorted(every)) or 'whole modules'}) cannot be "
            "written in HF PEFT's format, which has no such method, or holds one alone; use "
            "format='trimtab'"
        )
    _refuse_untied(model, adapter)
    if isinstance(next(iter(acting.values())), Prompt | Prefix):
        tensors, config = _prompts(model, adapter, acting, names)
    else:
        by_name = _by_name(model, adapter, acting, names)
        config = config_of(model, adapter, acting, names, by_name)
        tensors = _tensors(adapter, acting, names, by_name)
        if names.left_out and _drawn_again(adapter, acting, names, config):
            config[str(names.saved)] = False
            gone = tuple(f".{names.tensors.get(own, names.common.get(own))}" for own in names.drawn)
            tensors = {key: one for key, one in tensors.items() if not key.endswith(gone)}
        if names.form:
            tensors = names.form.write(config, tensors)
    return dict(sorted(config.items())), tensors


def _refuse_untied(model: nn.Module, adapter: Adapter) -> None:
    """There, tokens of an embedding act at all that is tied to it."""
    untied = [site for site, m in adapter.entries if m.name == ROWS and not m.arguments()["tied"]]
    known = modules(sites(model)) if untied else []
    for site in known:
        if site.name in untied and len(every := tied(site, known)) > 1:
            raise InputError(
                f"HF PEFT's tokens of {site.name!r} act at all that is tied to it: attach "
                f"Tokens(tied=True) to {[one.name for one in every]}, or use format='trimtab'"
            )


def _prompts(
    model: nn.Module, adapter: Adapter, acting: Mapping[str, Method], names: Names
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if any(method.name == BIASES for _, method in adapter.entries):
        raise InputError(f"HF PEFT's {names.peft_type} files hold no biases; use format='trimtab'")
    task = task_type(model, ["."])
    tensors, sizes = prompts.write(model, adapter, names, task)
    method = next(iter(acting.values()))
    return tensors, {
        **about(model, names, task),
        **sizes,
        **plain(method, names),
    }


def _by_name(
    model: nn.Module, adapter: Adapter, acting: Mapping[str, Method], names: Names
) -> dict[str, str]:
    """The sites whose tensors are named there, with the tensors' names: those that modules read
    themselves, and maps whose names HF PEFT would take for experts' in a model of this type.
    """
    if not names.parameters:
        return {}
    former = experts.former(model)
    found = {}
    for site, delta in adapter.deltas():
        if site not in acting or delta.method.name != acting[site].name:
            continue
        taken_for = site.rpartition(".")[2] in former and delta.site.geometry.kind == "linear"
        if delta.site.parameter is None and (delta.site.rows is not None or not taken_for):
            continue
        if reason := parameters.unwritable(delta.site):
            raise InputError(
                f"{site!r} cannot be written in HF PEFT's format: {reason}; use format='trimtab'"
            )
        found[site] = str(parameters.key_of(delta.site))
    every_module = model.named_modules() if found else ()
    every = [f"{name}.{p}" for name, module in every_module for p in module._parameters]
    for site, key in found.items():
        if twin := next((one for one in every if one.endswith(f".{key}")), None):
            raise InputError(
                f"{site!r} cannot be written in HF PEFT's format, where its name would mean "
                f"{twin!r} too; use format='trimtab'"
            )
        if getattr(acting[site], "dropout", 0):
            raise InputError(
                f"{site!r} cannot be written in HF PEFT's format with dropout: there its tensor is "
                "adapted by its values; use format='trimtab'"
            )
    return found


def _factors(
    adapter: Adapter, by_name: Mapping[str, str], names: Names, delta: Delta
) -> dict[str, Tensor]:
    """The tensors of a site that is named there, under their keys."""
    key = by_name[delta.site.name]
    home = delta.site.homes[0]
    module = adapter.hosts[delta.site.name].base
    path = parameters.nested(home, module, by_name.values())[key]
    written = {}
    for own, tensor in delta.tensors().items():
        theirs, factor = parameters.given(delta.site, module, own, tensor.detach())
        written[f"{PREFIX}{path}.{names.tensors[theirs]}"] = factor
    return written


def _tensors(
    adapter: Adapter, acting: Mapping[str, Method], names: Names, by_name: Mapping[str, str]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for site, delta in adapter.deltas():
        if delta.method.name == BIASES:
            bias = adapter.hosts[site].base.bias.detach()
            where = f"{site}.base_layer" if site in acting else site
            tensors[f"{PREFIX}{where}.bias"] = (bias.float() + delta.get_parameter("c")).detach()
            continue
        if site in by_name and delta.method.name == acting[site].name:
            tensors |= _factors(adapter, by_name, names, delta)
            continue
        for own, tensor in delta.tensors().items():
            if delta.method.name == Whole.name:
                tensors[f"{PREFIX}{site}.{own}"] = tensor
                continue
            if site not in acting:
                tensors[f"{PREFIX}{site}.{TOKEN_LEAF}"] = tensor
                continue
            if own in names.state or (names.masked and own == "mask"):
                continue
            geometry = adapter.hosts[site].geometry
            theirs = names.tensors_at(geometry.kind).get(own)
            at = delta.site
            part = at.rows is not None or at.parameter is not None
            stored = geometry.kind == "linear" and geometry.transposed and not names.transposed
            if theirs is None or geometry.groups > 1 or part or stored:
                raise InputError(
                    f"{site!r} ({geometry.kind}) cannot be written in HF PEFT's format, which "
                    f"holds no {delta.method.name} there; use format='trimtab'"
                )
            if why := names.differs(delta.method, geometry, adapter.hosts[site].base):
                raise InputError(
                    f"{site!r} ({geometry.kind}) cannot be written in HF PEFT's format, whose "
                    f"{names.peft_type} is another law there: {why}; use format='trimtab'"
                )
            if names.masked:
                tensor = pruned.left(names, own, tensor, delta.tensors()["mask"])
            tensors[f"{PREFIX}{site}.{theirs}"] = _shaped(names, geometry, own, tensor)
    for shared in adapter.shared.values():
        for own, theirs in names.common.items():
            tensors[f"{ROOT}{theirs}"] = shared.tensors()[own]
            for site in acting if names.repeated else ():
                tensors[f"{PREFIX}{site}.{theirs}"] = shared.tensors()[own].clone()
    for site, delta in adapter.deltas():
        if delta.method.name == ROWS and delta.shared is not None:
            embeds = adapter.hosts[site].geometry.kind == "embedding"
            leaf = TOKEN_LEAF if site not in acting else TOKEN_LEAF.rpartition(".")[2]
            if embeds or site in acting:
                tensors[f"{PREFIX}{site}.{leaf}"] = delta.shared.tensors()["t"].clone()
    return tensors


def _drawn_again(
    adapter: Adapter, acting: Mapping[str, Method], names: Names, config: Mapping[str, Any]
) -> bool:
    """Whether what a file may leave out is what would be drawn where it is read."""
    pairs = [(d.site, d) for site, d in adapter.deltas() if acting.get(site) == d.method]
    method = arguments(config, type(pairs[0][1].method), names, pairs[0][0].name)
    with torch.random.fork_rng(devices=[]):
        fresh = [method.shared([site for site, _ in pairs])]
        fresh += method.allot([site for site, _ in pairs])
    held = [next(iter(adapter.shared.values())).tensors(), *(d.tensors() for _, d in pairs)]
    return all(
        torch.equal(one[own].value, other[own].cpu())
        for one, other in zip(fresh, held, strict=True)
        for own in one.keys() & set(names.drawn)
    )


def _shaped(names: Names, geometry: Geometry, own: str, tensor: Tensor) -> Tensor:
    """The shape that a tensor has there."""
    if own in names.rows and geometry.kind == "conv":
        return tensor[None]
    if own in names.columns:
        return tensor[:, None]
    if geometry.kind == "conv" and own in names.kernels:
        kernel = geometry.shape[2:]
        filled = (1,) * (names.kernels[own] - len(kernel))
        return tensor.reshape(tensor.shape[0], -1, *kernel, *filled)
    if geometry.kind != "conv" or names.patches is None:
        return tensor
    ones = (1,) * (len(geometry.shape) - 2)
    if own in names.channels:
        return tensor.reshape(1, -1, *ones)
    shape = geometry.shape[1:] if own == names.patches else (tensor.shape[1], *ones)
    return tensor.reshape(tensor.shape[0], *shape)
