"""LoRA in diffusers' own file, `pytorch_lora_weights.safetensors`, which its pipelines load.

The tensors are HF PEFT's, before whose names stands the part of the pipeline that they act on:
`unet.` or `transformer.`; HF PEFT's configuration lies beside them, under names with the same
prefix. Files that older programs wrote have no configuration, but a rank that the shapes tell and
perhaps an `alpha` for each module, and other names for A and B: `lora.down`, `lora.up`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.core.site import Site
from trimtab.store import hf, native
from trimtab.store.files import parse_json, read_metadata, read_tensors, write_tensors

CONFIG = TENSORS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # where diffusers keeps the configuration
NETWORKS = ("unet", "transformer")

_OLD = (
    (re.compile(r"\.processor\."), "."),
    (re.compile(r"\.to_out_lora\."), ".to_out.0.lora."),
    (re.compile(r"\.(to_[qkv])_lora\."), r".\1.lora."),
    (re.compile(r"\.lora(_linear_layer)?\.down\."), ".lora_A."),
    (re.compile(r"\.lora(_linear_layer)?\.up\."), ".lora_B."),
)
_ALPHA = ".alpha"


def write(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """The adapter as diffusers' pipelines read it, or an `InputError` that says why there is no
    such file of it."""
    part = network(model)
    if part is None:
        raise InputError(
            "format='diffusers' is of networks that diffusers loads LoRA into, such as "
            f"UNet2DConditionModel; this model is a {type(model).__name__}: use format='peft' or "
            "'trimtab'"
        )
    config, tensors = hf.content(model, adapter)
    named = {key.removeprefix(hf.PREFIX): tensor for key, tensor in tensors.items()}
    others = [key for key in named if ".lora_" not in key]
    if config["peft_type"] != "LORA" or others:
        what = f"{others[0]!r}" if others else f"those of {config['peft_type']}"
        raise InputError(
            f"adapter {adapter.name!r}: diffusers' file holds the tensors of LoRA alone, not "
            f"{what}; use format='peft' or 'trimtab'"
        )
    told = {f"{part}.{key}": value for key, value in config.items()}
    write_tensors(
        folder / TENSORS,
        {f"{part}.{key}": tensor for key, tensor in named.items()},
        {METADATA: json.dumps(told, sort_keys=True), **hf.remember(model, adapter)},
    )


def read(folder: Path, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """HF PEFT's configuration and tensors of this network."""
    where = folder / TENSORS
    tensors, metadata = read_tensors(where), read_metadata(where)
    told = (
        parse_json(metadata[METADATA], f"{where}: {METADATA!r}") if METADATA in metadata else None
    )
    part = network(model)
    parts = sorted({key.partition(".")[0] for key in tensors})
    if part in parts:
        others = [other for other in parts if other != part]
        if others:
            warnings.warn(
                f"{where} acts on {', '.join(others)}, too, of which nothing is loaded here: this "
                f"is its {part} alone",
                stacklevel=5,
            )
        tensors, told = _of_part(tensors, part), told and _of_part(told, part)
    elif any(known in parts for known in NETWORKS):
        raise AdapterMismatch(
            f"{where} is of a {' and a '.join(p for p in parts if p in NETWORKS)}, and this model "
            f"is a {type(model).__name__}"
        )
    tensors, alphas = _renamed(tensors, where)
    config = told or _told_by_shapes(tensors, alphas)
    return config, {f"{hf.PREFIX}{key}": tensor for key, tensor in tensors.items()}


def interpret(
    folder: Path, model: nn.Module, known: Mapping[str, Site], adapter: str
) -> tuple[native.Pairs, dict[str, Tensor]]:
    """(site, method) pairs, and the tensors under Trimtab's names."""
    config, tensors = read(folder, model)
    return hf.interpret(config, tensors, model, known, adapter)


def remembered(folder: Path) -> dict[str, Any] | None:
    return hf.remembered(folder, TENSORS)


def network(model: nn.Module) -> str | None:
    """What a pipeline calls a network of this class; nothing where it loads no LoRA into it."""
    if not hasattr(model, "load_lora_adapter"):
        return None
    return "unet" if "UNet" in type(model).__name__ else "transformer"


def _of_part(named: Mapping[str, Any], part: str) -> dict[str, Any]:
    start = f"{part}."
    return {k.removeprefix(start): value for k, value in named.items() if k.startswith(start)}


def _renamed(
    tensors: Mapping[str, Tensor], where: Path
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Under HF PEFT's names, and each module's alpha where it is told beside them."""
    found, alphas = {}, {}
    for key, tensor in tensors.items():
        for old, new in _OLD:
            key = old.sub(new, key)
        if key.endswith(_ALPHA) and tensor.numel() == 1:
            alphas[key.removesuffix(_ALPHA)] = float(tensor)
        else:
            found[key] = tensor
    glued = next((key for key in found if ".lora_down." in key or ".lora_up." in key), None)
    if glued:
        raise InputError(
            f"{where} has {glued!r}: names of kohya's scripts. Load it with diffusers "
            "(load_lora_weights) and save it again (save_lora_weights)"
        )
    return found, alphas


def _told_by_shapes(tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The configuration of a file without one: alpha is the rank where nothing else is said."""
    end = ".lora_B.weight"
    ranks = {
        key.removesuffix(end): tensor.shape[1]
        for key, tensor in tensors.items()
        if key.endswith(end) and tensor.ndim > 1
    }
    if not ranks:
        raise AdapterMismatch("the file holds no LoRA: no tensor's name ends in lora_B.weight")
    of = {path: alphas.get(path, float(rank)) for path, rank in ranks.items()}
    rank, alpha = (Counter(one.values()).most_common(1)[0][0] for one in (ranks, of))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(path): a for path, a in of.items() if a != alpha},
        "target_modules": list(ranks),
        "use_dora": any(".lora_magnitude_vector" in key for key in tensors),
    }
