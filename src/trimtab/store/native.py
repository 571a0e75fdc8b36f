"""Trimtab's own adapter folder: `adapter.json` (format, version, methods, base) and
`adapter.safetensors`.

Tensors are named `site.method.tensor`, or by the parameter itself where the base's own parameters
train. What a method draws from its seed (VeRA's projections, Uni-LoRA's indices, places of sparse
values) is stored as well: torch and numpy promise the same draws on one version alone, and a file
must give the same adapter on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import Adapter, record
from trimtab.core.delta import Delta
from trimtab.core.errors import AdapterMismatch, InputError, nearest
from trimtab.core.method import Method
from trimtab.core.registry import build
from trimtab.core.site import Site
from trimtab.core.walk import walk
from trimtab.methods.whole import Whole
from trimtab.place import Built, by_method
from trimtab.store import fingerprint
from trimtab.store.files import digest, read_json, read_tensors, write_json, write_tensors

VERSION = 1
_LARGEST = 3.5e38  # no bf16 value lies beyond it
CONFIG, TENSORS = "adapter.json", "adapter.safetensors"

Pairs = list[tuple[Site, Method]]


def replaced(
    model: nn.Module, deltas: Iterable[tuple[str, Delta]], selected: Iterable[str] = ()
) -> set[str]:
    """The base's parameters whose values an adapter brings along; not those that another module
    goes on reading, being tied to them."""
    brought = {
        f"{site}.{name}"
        for site, delta in deltas
        for name in (delta.tensors() if delta.method.name == Whole.name else delta.method.replaces)
    }
    holding: dict[int, set[str]] = {}
    for path, module in walk(model):
        for name, parameter in module._parameters.items():
            holding.setdefault(id(parameter), set()).add(f"{path}.{name}")
    read = {name for names in holding.values() if not names <= brought for name in names}
    return (brought - read) | set(selected)


def base(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """What is remembered of the base under this adapter."""
    own = replaced(model, adapter.deltas(), adapter.selected)
    described = fingerprint.describe(model, own, record(model).originals())
    config = getattr(model, "config", None)
    return {
        "class": type(model).__name__.removeprefix("FSDP"),  # which FSDP2 puts before it
        "name": getattr(config, "_name_or_path", None) or None,
        "fingerprint": fingerprint.fingerprint(described),
        "parameters": described,
    }


def held(built: Built) -> dict[str, Tensor]:
    """Every tensor of deltas that are on no model yet, by the name that it is saved under."""
    deltas, shared = built
    found = {
        f"{site.name}.{delta.method.name}.{key}": tensor
        for site, delta in deltas
        for key, tensor in delta.tensors().items()
    }
    for name, common in shared.items():
        found |= {f"shared.{name}.{key}": tensor for key, tensor in common.tensors().items()}
    return found


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    write_tensors(folder / TENSORS, adapter.tensors())
    write_json(
        folder / CONFIG,
        {
            "format": "trimtab",
            "version": VERSION,
            "name": adapter.name,
            "methods": [
                {"method": method.name, "arguments": method.arguments(), "sites": sites}
                for method, sites in by_method(adapter.entries).items()
            ],
            "base": base(model, adapter),
            "digest": digest(folder / TENSORS),
        },
    )


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The folder's configuration, checked, and its tensors."""
    config = read_json(folder / CONFIG)
    where = folder / CONFIG
    if config.get("format") != "trimtab" or not _is_version(config.get("version")):
        raise InputError(
            f"{where} is not in Trimtab's format: 'format' and 'version' are not right"
        )
    if config["version"] > VERSION:
        raise InputError(
            f"{where} has format version {config['version']}; this Trimtab reads up to {VERSION}: "
            "upgrade it"
        )
    _check(config, {"name": str, "methods": list, "base": dict}, where)
    check_base(config["base"], where)
    for entry in config["methods"]:
        if not isinstance(entry, dict):
            raise InputError(f"{where}: every entry of 'methods' must be an object, not {entry!r}")
        _check(entry, {"method": str, "arguments": dict, "sites": list}, where)
        if not entry["sites"] or not all(isinstance(site, str) for site in entry["sites"]):
            raise InputError(f"{where}: 'sites' must be names")
    if not config["methods"]:
        raise InputError(f"{where}: 'methods' is empty: nothing acts anywhere")
    return config, read_tensors(folder / TENSORS)


def check_digest(config: Mapping[str, Any], folder: Path) -> None:
    """The two files belong together. Asked last: a key that is wrong is named before."""
    known = config.get("digest")  # files of before have none
    if known is not None and digest(folder / TENSORS) != known:
        raise AdapterMismatch(
            f"{folder / TENSORS} is not the file that {CONFIG} was written for: one of the two was "
            "replaced or changed; save the adapter again, or take both files from one place"
        )


def check_base(base: Mapping[str, Any], where: Path) -> None:
    """The form of what is remembered of a base."""
    _check(base, {"parameters": dict, "fingerprint": str}, where)
    for name, parameter in base["parameters"].items():
        _check_parameter(name, parameter, where)


def _is_version(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check(data: Mapping[str, Any], fields: Mapping[str, type], where: Path) -> None:
    for name, kind in fields.items():
        if not isinstance(data.get(name), kind):
            found = "missing" if name not in data else repr(data[name])[:60]
            raise InputError(f"{where}: {name!r} must be a {kind.__name__}, and is {found}")


def _check_parameter(name: str, parameter: Any, where: Path) -> None:
    good = isinstance(parameter, dict) and isinstance(parameter.get("shape"), list)
    good = good and "values" in parameter
    values = parameter["values"] if good else None
    if good and values is not None:
        good = isinstance(values, list) and all(
            isinstance(value, int | float) and -_LARGEST <= value <= _LARGEST for value in values
        )
    if not good:
        raise InputError(f"{where}: base parameter {name!r} must have a 'shape' and 'values'")


def methods(config: Mapping[str, Any]) -> list[tuple[str, Method]]:
    """(site, method) for all sites, from a checked configuration."""
    return [
        (site, method)
        for entry in config["methods"]
        for method in [saved_method(entry["method"], entry["arguments"])]
        for site in entry["sites"]
    ]


def saved_method(name: str, arguments: Mapping[str, Any]) -> Method:
    """A method with hyper-parameters from a file, in which a number may be anything."""
    for key, value in arguments.items():
        if isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
            raise InputError(f"{name}: {key} must be a finite number, not {value!r:.40}")
    return build(name, arguments)


def locate(named: list[tuple[str, Method]], known: Mapping[str, Site], adapter: str) -> Pairs:
    """Sites of this model for the saved names. What insists on a base in one format acts on others
    by the law without that; the caller tells its user."""
    pairs: Pairs = []
    for name, method in named:
        site = known.get(name)
        if site is None:
            raise AdapterMismatch(
                f"adapter {adapter!r} has the site {name!r}, which this model has not; "
                f"{nearest(name, known)}"
            )
        reason, other = method.accepts(site), method.elsewhere()
        if reason and other is not None and other.accepts(site) is None:
            reason, method = None, other
        if reason:
            raise AdapterMismatch(
                f"adapter {adapter!r}: {method.name} cannot act at {name!r}: {reason}"
            )
        pairs.append((site, method))
    return pairs
