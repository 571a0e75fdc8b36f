"""Tensors that HF PEFT adapts by name (`target_parameters`), such as experts held in one: which
they are, under which keys, and in which layout.

There the module that holds such a tensor is wrapped once for each, in the order of its parameters,
so that the last one's factors lie outermost and the first one's beneath `base_layer`s. The factors
of all experts are one matrix each: A (experts · rank, in), expert by expert, and B
(out, rank · experts), rank by rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names
from trimtab.core.site import Site
from trimtab.store.hf.fields import CONFIG, PARAMETERS, is_off
from trimtab.store.hf.targets import names as ends
from trimtab.store.hf.targets import within

BASE = ".base_layer"
_ROOT = "HF PEFT wraps the module that holds it, and cannot wrap the model itself"


@dataclass(frozen=True)
class Parameter:
    """A tensor that is named: its own full name, its site, and the path of its factors there."""

    key: str
    site: Site
    path: str


def key_of(site: Site) -> str | None:
    """The full name of the tensor that a site is, where it is one as HF PEFT sees it."""
    if site.parameter is None and site.geometry.kind not in {"linear", "embedding"}:
        return None
    return f"{site.homes[0]}.{site.parameter or 'weight'}"


def nested(home: str, module: nn.Module, chosen: Collection[str]) -> dict[str, str]:
    """Of the chosen tensors of one module, by full name, the paths of their factors."""
    order = [key for name in module._parameters if (key := f"{home}.{name}") in chosen]
    return {key: home + BASE * depth for depth, key in enumerate(reversed(order))}


def named(
    config: Mapping[str, Any], cls: type[Method], names: Names, known: Iterable[Site]
) -> list[Parameter]:
    """The tensors that a configuration names, or an `InputError` for one that cannot be meant."""
    wanted = config.get(PARAMETERS)
    if not wanted:
        return []
    wholes = [site for site in known if site.rows is None]
    holders = dict(_holder(site) for site in wholes)
    sites = {key: site for site in wholes if (key := key_of(site)) is not None}
    found = []
    for home, module in holders.items():
        keys = [f"{home}.{name}" for name, held in module._parameters.items() if held is not None]
        chosen = [key for key in keys if ends(list(wanted), key)]
        for key in chosen:
            reason = _unfit(sites.get(key), key, cls())
            if within(key, config.get("modules_to_save") or ()):
                reason = "modules_to_save trains its module whole"
            if reason:
                raise InputError(f"{CONFIG}: {PARAMETERS} names {key.lstrip('.')!r}: {reason}")
        paths = nested(home, module, chosen)
        found += [Parameter(key, sites[key], path) for key, path in paths.items()]
    if not found:
        raise InputError(
            f"{CONFIG}: {PARAMETERS}={wanted!r}: no module of this model has such a tensor; there "
            f"are {sorted({k.rpartition('.')[2] for k, s in sites.items() if s.parameter})[:12]}"
        )
    _check_fields(config, names, found)
    return found


def _holder(site: Site) -> tuple[str, nn.Module]:
    """The module that holds the tensor of a site, with its name."""
    home, beneath = site.homes[0], (site.parameter or "").rpartition(".")[0]
    return f"{home}.{beneath}" if beneath else home, site.module.get_submodule(beneath)


def _unfit(site: Site | None, key: str, method: Method) -> str | None:
    """Why a tensor cannot be adapted by name, here or there."""
    if key.startswith("."):
        return _ROOT
    if site is None:
        return "it is no matrix, and no experts' matrices, that a site is known for"
    return unwritable(site) or method.accepts(site)


def unwritable(site: Site) -> str | None:
    """Why HF PEFT cannot adapt the tensor of a site by name."""
    geometry = site.geometry
    if not site.homes[0]:
        return _ROOT
    if site.rows is not None:
        return "HF PEFT adapts the whole tensor, and no part of it"
    if site.parameter is not None and "." in site.parameter:
        return (
            "the module that holds it is never called, since another reads it from outside: what "
            "HF PEFT adds there has no effect"
        )
    if geometry.shape:
        return f"HF PEFT takes it, being {geometry.shape}, for {geometry.shape[0]} experts"
    if geometry.count == 1 and geometry.transposed:
        return "HF PEFT cannot add to one expert alone that is stored as (in, out)"
    return None


def _check_fields(config: Mapping[str, Any], names: Names, found: list[Parameter]) -> None:
    """What HF PEFT cannot do at tensors, and so not in a configuration that names some."""
    for field in (names.fields.get("dropout"), "fan_in_fan_out", "lora_bias"):
        if field is not None and not is_off(value := config.get(field)):
            raise InputError(
                f"{CONFIG}: {field}={value!r} cannot stand beside {PARAMETERS}: HF PEFT adapts "
                f"{found[0].key!r} by its values, and gives no {field} there"
            )
    for one in found if config.get("bias") == "all" else ():
        biases = [name for name in one.site.module._parameters if "bias" in name]
        if one.site.parameter and biases:
            raise InputError(
                f"{CONFIG}: bias='all' would train {biases} of the module that reads {one.key!r} "
                "itself, which are no biases of sites: use 'lora_only', or 'none'"
            )


def _flipped(site: Site, module: nn.Module) -> bool:
    """Whether its factors have the other's place there, as the product is the other way round.
    Experts say how they are stored; a matrix counts as (out, in) whatever it is.
    """
    theirs = bool(site.geometry.count) and bool(getattr(module, "is_transposed", False))
    return theirs != site.geometry.transposed


_OTHER = {"A": "B", "B": "A"}


def shape(site: Site, own: str, rank: int) -> tuple[int, int]:
    """The shape that a factor has in the file."""
    g = site.geometry
    out, inp = g.out_features, g.in_features
    if _flipped(site, site.module):
        out, inp = inp, out
    ranks = rank * max(g.count, 1)
    return (ranks, inp) if own == "A" else (out, ranks)


def taken(site: Site, own: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A factor of the file -> our name of it, and a matrix, or one for each expert."""
    if count := site.geometry.count:
        if own == "A":
            tensor = tensor.reshape(count, -1, tensor.shape[1])
        else:
            tensor = tensor.reshape(tensor.shape[0], -1, count).permute(2, 0, 1)
    if _flipped(site, site.module):
        own, tensor = _OTHER[own], tensor.mT
    return own, tensor.contiguous()


def given(site: Site, module: nn.Module, own: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The inverse of `taken`, for the site of a delta, which knows no module."""
    if _flipped(site, module):
        own, tensor = _OTHER[own], tensor.mT
    if site.geometry.count:
        tensor = tensor if own == "A" else tensor.permute(1, 2, 0)
        tensor = tensor.flatten(0, 1) if own == "A" else tensor.flatten(1)
    return own, tensor.contiguous()
