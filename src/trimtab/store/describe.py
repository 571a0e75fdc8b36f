"""What a saved adapter is, from its files alone: no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.method import Additive, Method, Values
from trimtab.store import diffusers, hf, native
from trimtab.store.files import read_tensors


@dataclass(frozen=True)
class SavedSite:
    """One method at one site: its tensors' shapes, and the Frobenius norm of the change of the
    weight, where the file alone tells it: where the law is additive and shares nothing.
    """

    name: str
    method: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    norm: float | None


@dataclass(frozen=True)
class Saved:
    """A saved adapter."""

    folder: Path
    format: str
    name: str
    base: dict[str, Any]
    methods: list[dict[str, Any]]
    sites: list[SavedSite]
    bytes: int

    @property
    def parameters(self) -> int:
        return sum(site.parameters for site in self.sites)


def describe(folder: str | Path) -> Saved:
    """Read an adapter's folder, or a run's."""
    folder = Path(folder)
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder: an adapter is a folder with {native.CONFIG} and "
            f"{native.TENSORS}, a run one that has an adapter in it"
        )
    if (folder / native.CONFIG).exists():
        return _native(folder)
    if (folder / hf.CONFIG).exists():
        config, tensors = hf.read(folder)
        return _hf(folder, "peft", config, tensors, hf.remembered(folder))
    if (folder / diffusers.TENSORS).exists():
        told = {"peft_type": "LORA"}
        tensors = read_tensors(folder / diffusers.TENSORS)
        return _hf(folder, "diffusers", told, tensors, diffusers.remembered(folder))
    if (folder / "config.yaml").exists():
        raise InputError(
            f"the run in {folder} is not finished and has no adapter yet: go on with trimtab tune "
            f"--resume --out {folder}"
        )
    raise InputError(f"{folder} holds no adapter: neither {native.CONFIG} nor {hf.CONFIG} is there")


def _native(folder: Path) -> Saved:
    config, tensors = native.read(folder)
    sites = []
    for entry in config["methods"]:
        method = native.saved_method(entry["method"], entry["arguments"])
        common = _under(f"shared.{method.name}.", tensors)
        for name in entry["sites"]:
            prefix = f"{name}.{method.name}." if name else ""
            own = _under(prefix, tensors)
            sites.append(_site(name or "(parameters of the base)", method, own, common))
        if common:
            sites.append(_counted("(shared)", method.name, common))
    entries = [
        {"method": e["method"], **e["arguments"], "sites": len(e["sites"])}
        for e in config["methods"]
    ]
    base = {key: config["base"].get(key) for key in ("class", "name", "fingerprint")}
    return Saved(folder, "trimtab", config["name"], base, entries, sites, _bytes(folder))


def _hf(
    folder: Path,
    format: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    remembered: dict[str, Any] | None,
) -> Saved:
    by_site: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        site, _, leaf = key.removeprefix("base_model.model.").rpartition(".")
        by_site.setdefault(site, {})[leaf] = tensor
    sites = [_counted(name, str(config.get("peft_type")), own) for name, own in by_site.items()]
    methods = [{"method": config.get("peft_type"), "sites": len(sites)}]
    known = remembered or {"name": folder.name, "base": {}}
    base = {key: known["base"].get(key) for key in ("class", "name", "fingerprint")}
    base["name"] = base["name"] or config.get("base_model_name_or_path")
    return Saved(folder, format, known["name"], base, methods, sites, _bytes(folder))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _site(
    name: str, method: Method, own: dict[str, Tensor], common: dict[str, Tensor]
) -> SavedSite:
    counted = _counted(name, method.name, own)
    if common or not isinstance(method, Additive):  # what is shared is cut to fit a site
        return counted
    try:
        with torch.no_grad():
            norm = float(method.delta(Values(own, training=False)).norm())
    except (AttributeError, RuntimeError) as error:
        if getattr(error, "name", "") == "site":  # a law that asks for its size, which no file has
            return counted
        raise AdapterMismatch(
            f"the tensors of {name!r} are not those of {method.name}: {counted.shapes}"
        ) from None
    return SavedSite(name, method.name, counted.shapes, counted.parameters, norm)


def _counted(name: str, method: str, own: dict[str, Tensor]) -> SavedSite:
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
    return SavedSite(name, method, shapes, sum(t.numel() for t in own.values()), None)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
