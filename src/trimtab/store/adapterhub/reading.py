"""The folder: `adapter_config.json` and the tensors; what it says, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trimtab.core.errors import AdapterMismatch, InputError
from trimtab.store.files import read_json, read_state_dict, read_tensors

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"

_HARMLESS = {
    *("architecture", "init_weights", "init_weights_seed", "inv_adapter_reduction_factor"),
    *("phm_dim", "factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule"),
    *("phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "phm_rank"),
    *("phm_bias", "adapter_residual_before_ln"),
}
"""How it began, and what has a meaning only beside a field that is refused."""

_HONOURED: dict[str, tuple[type, ...]] = {
    "mh_adapter": (bool,),
    "output_adapter": (bool,),
    "reduction_factor": (int, float, dict),
    "non_linearity": (str,),
    "original_ln_before": (bool,),
    "original_ln_after": (bool,),
    "residual_before_ln": (bool, str),
    "is_parallel": (bool,),
    "scaling": (int, float),
    "dropout": (int, float),
    "leave_out": (list,),
}
_DEFAULTS: dict[str, Any] = {
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "is_parallel": False,
    "scaling": 1.0,
    "dropout": 0.0,
    "leave_out": [],
}
_LEAVES = {
    "adapter_down.0.weight": "D",
    "adapter_down.0.bias": "D_bias",
    "adapter_up.weight": "U",
    "adapter_up.bias": "U_bias",
}
_KEY = re.compile(r"(?P<place>.+?)\.adapters\.(?P<name>[^.]+)\.(?P<leaf>.+)")
_PLACES = [
    (re.compile(r"(?P<block>.+)\.cross_attention_adapters"), "cross-attention-output"),
    (re.compile(r"(?P<block>.+)\.attention\.(attention_adapters|output)"), "attention-output"),
    (re.compile(r"(?P<block>.+)\.attention_adapters"), "attention-output"),
    (re.compile(r"(?P<block>.+)\.(output_adapters|output)"), "mlp-output"),
    (re.compile(r"(?P<block>.*decoder.*\.block\.\d+)\.layer\.1"), "cross-attention-output"),
    (re.compile(r"(?P<block>.+\.block\.\d+)\.layer\.0"), "attention-output"),
    (re.compile(r"(?P<block>.+\.block\.\d+)\.layer\.[12]"), "mlp-output"),
]
"""Where a bottleneck stands, by the name of what holds it."""


@dataclass(frozen=True)
class Bottleneck:
    """One bottleneck: the block it stands in, after which part of it, and its tensors."""

    block: str
    role: str
    tensors: Mapping[str, Tensor]

    @property
    def layer(self) -> int | None:
        """Its number; of a decoder's it is not known how many layers of an encoder come before."""
        if re.search(r"(^|\.)decoder\.", self.block):
            return None
        return int(re.findall(r"\d+", self.block)[-1])


@dataclass(frozen=True)
class Saved:
    """What a folder holds."""

    name: str
    model_type: str | None
    fields: Mapping[str, Any]
    bottlenecks: tuple[Bottleneck, ...]


def holds(folder: Path) -> bool:
    """Whether a folder is AdapterHub's, whose configuration's name HF PEFT's has too."""
    if not (folder / CONFIG).is_file():
        return False
    config = read_json(folder / CONFIG)
    return "peft_type" not in config and isinstance(config.get("config"), dict)


def read(folder: str | Path) -> Saved:
    """A folder of bottleneck adapters, checked; an `InputError` names what cannot be used."""
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    inner, name = config.get("config"), config.get("name")
    if not isinstance(inner, dict) or not isinstance(name, str):
        raise InputError(
            f"{folder / CONFIG} is no configuration of AdapterHub: it must have 'config', an "
            "object, and 'name'"
        )
    fields = _fields(inner, folder / CONFIG)
    pickled = folder / PICKLED
    if (folder / TENSORS).is_file() or not pickled.is_file():
        tensors = read_tensors(folder / TENSORS)
    else:
        tensors = read_state_dict(pickled)
    found = _bottlenecks(tensors, name)
    for one in found:
        _check(one, fields)
    _check_places(found, fields, name)
    kind = config.get("model_type")
    return Saved(name, kind if isinstance(kind, str) else None, fields, tuple(found))


def _fields(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    if config.get("architecture") is not None:
        raise InputError(
            f"{where}: architecture={config['architecture']!r}: only bottleneck adapters are read"
        )
    for field, value in config.items():
        off = value in (None, False, 0, "") or value == [] or value == {}
        if field not in _HONOURED and field not in _HARMLESS and not off:
            raise InputError(f"{where}: {field}={value!r} has no equal here and is not off")
    fields = {**_DEFAULTS, **{key: config[key] for key in _HONOURED if key in config}}
    for field, kinds in _HONOURED.items():
        if field not in fields:
            raise InputError(f"{where}: {field} is missing")
        value = fields[field]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{where}: {field} must be {expected}, not {value!r:.60}")
    _check_values(fields, where)
    return fields


def _check_values(fields: Mapping[str, Any], where: Path) -> None:
    if isinstance(fields["residual_before_ln"], str) and fields["residual_before_ln"] != "post_add":
        raise InputError(
            f"{where}: residual_before_ln is true, false or 'post_add', not "
            f"{fields['residual_before_ln']!r}"
        )
    if not -1e30 < fields["scaling"] < 1e30 or not 0 <= fields["dropout"] < 1:
        raise InputError(f"{where}: scaling and dropout must be finite, dropout within [0, 1)")
    if any(isinstance(one, bool) or not isinstance(one, int) for one in fields["leave_out"]):
        raise InputError(f"{where}: leave_out must be numbers of layers")
    factor = fields["reduction_factor"]
    for one in factor.values() if isinstance(factor, dict) else [factor]:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < 1e9:
            raise InputError(f"{where}: reduction_factor must be above 0, not {one!r:.40}")


def _bottlenecks(tensors: Mapping[str, Tensor], name: str) -> list[Bottleneck]:
    """The tensors by place, in the file's own order of blocks."""
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or found["name"] != name or found["leaf"] not in _LEAVES:
            raise AdapterMismatch(
                f"the tensor {key!r} is no part of a bottleneck of the adapter {name!r}"
            )
        place = _place(found["place"], key)
        own = grouped.setdefault(place, {})
        if _LEAVES[found["leaf"]] in own:
            raise AdapterMismatch(f"the tensor {key!r} is there twice, under two names")
        own[_LEAVES[found["leaf"]]] = tensor
    if not grouped:
        raise AdapterMismatch(f"the adapter {name!r} has no tensors")
    return [Bottleneck(block, role, own) for (block, role), own in grouped.items()]


def _place(place: str, key: str) -> tuple[str, str]:
    for pattern, role in _PLACES:
        found = pattern.fullmatch(place)
        if found and re.search(r"\d", found["block"]):
            return found["block"], role
    raise AdapterMismatch(f"the tensor {key!r} stands at {place!r}, which is no place known here")


def _check(one: Bottleneck, fields: Mapping[str, Any]) -> None:
    where = f"the bottleneck at {one.block!r} ({one.role})"
    for leaf in _LEAVES.values():
        if leaf not in one.tensors:
            raise AdapterMismatch(f"{where} misses its tensor {leaf}")
        if not one.tensors[leaf].is_floating_point() or not one.tensors[leaf].isfinite().all():
            raise AdapterMismatch(f"{where}: {leaf} must hold finite floating-point numbers")
    D = one.tensors["D"]
    if D.ndim != 2:
        raise AdapterMismatch(f"{where}: D must be a matrix, and has shape {tuple(D.shape)}")
    narrow, wide = D.shape
    expected = {
        "D": (_narrow(one, wide, fields["reduction_factor"]), wide),
        "D_bias": (narrow,),
        "U": (wide, narrow),
        "U_bias": (wide,),
    }
    for leaf, shape in expected.items():
        if tuple(one.tensors[leaf].shape) != shape:
            raise AdapterMismatch(
                f"{where}: {leaf} has shape {tuple(one.tensors[leaf].shape)}, and must have {shape}"
            )


def _narrow(one: Bottleneck, wide: int, factor: Any) -> int:
    """The width by the configuration; its own where the layer's number is not known."""
    if isinstance(factor, dict):
        if one.layer is None and set(factor) != {"default"}:
            return len(one.tensors["D"])
        factor = factor.get(str(one.layer), factor.get("default"))
        if factor is None:
            raise InputError(f"{CONFIG}: reduction_factor says nothing of layer {one.layer}")
    return max(1, int(wide // factor))


def _check_places(found: list[Bottleneck], fields: Mapping[str, Any], name: str) -> None:
    """The places are those of the configuration: none beyond them, and the same in every layer."""
    wanted = {
        role
        for field, role in (("mh_adapter", "attention-output"), ("output_adapter", "mlp-output"))
        if fields[field]
    }
    here: dict[str, set[str]] = {}
    for one in found:
        here.setdefault(one.block, set()).add(one.role)
        if one.layer in fields["leave_out"]:
            raise AdapterMismatch(f"adapter {name!r} leaves layer {one.layer} out, and has tensors")
    for block, roles in here.items():
        if roles != wanted:
            raise AdapterMismatch(
                f"adapter {name!r} has bottlenecks at {sorted(roles)} of {block!r}, and by its "
                f"configuration {sorted(wanted)}"
            )
