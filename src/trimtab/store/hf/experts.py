"""Experts that are one tensor since transformers 5: HF PEFT reads a configuration that names their
former modules as `target_parameters`. Facts of that library, which the tests compare with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trimtab.core.errors import InputError
from trimtab.core.site import Site
from trimtab.match import sites
from trimtab.store.hf.fields import CONFIG, PARAMETERS, arguments, chosen
from trimtab.store.hf.targets import is_target

_ROUTER = {"gate": "gate.weight"}
_LIKE_MIXTRAL = {**_ROUTER, "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_LIKE_QWEN = {
    **_ROUTER,
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}
_TYPES = (
    ("mixtral minimax minimax_m2", _LIKE_MIXTRAL),
    (
        "afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe"
        " flex_olmo glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash"
        " mellum olmoe qwen3_moe qwen3_next qwen3_omni_moe qwen3_omni_moe_text"
        " qwen3_omni_moe_thinker solar_open",
        _LIKE_QWEN,
    ),
)
FORMER = {one: table for types, table in _TYPES for one in types.split()}
"""By the model's type: former module -> the tensor that holds it now. Not the type `qwen2_moe`,
whose names are left as they are.
"""


def former(model: nn.Module) -> Mapping[str, str]:
    """The names that HF PEFT reads as tensors in a model of this type."""
    return FORMER.get(str(getattr(getattr(model, "config", None), "model_type", None)), {})


def convert(fields: dict[str, Any], model: nn.Module) -> None:
    """Former modules among the targets become tensors; where several have become one, its rank and
    alpha are those of all together. A pattern, and "all-linear", count as the last parts of the
    names that they match, everywhere.
    """
    table = former(model)
    if not table or fields.get("peft_type") != "LORA":
        return
    cls, names = chosen(fields)
    targets = fields.get("target_modules") or []
    if isinstance(targets, str):
        targets = sorted(_leaves(fields, sites(model), table)) or targets
    if isinstance(targets, str):  # which matches nothing
        return
    met = {old: [one for one in targets if _is(one, old)] for old in table}
    moved = {one for found in met.values() for one in found}
    fields["target_modules"] = [one for one in targets if one not in moved]
    patterns = {own: f"{own}_pattern" for own in names.patterns}
    usual = arguments({**fields, **dict.fromkeys(patterns.values())}, cls, names, "")
    for tensor in dict.fromkeys(table.values()):
        parts = [old for old, new in table.items() if new == tensor]
        there = [old for old in parts if met[old]]
        if not there:
            continue
        if missing := [old for old in parts if old not in there]:
            raise InputError(
                f"{CONFIG}: target_modules has {there} without {missing}: in this model they are "
                f"one tensor, {tensor!r}; name all of them, or {PARAMETERS}=[{tensor!r}]"
            )
        fields[PARAMETERS] = [*(fields.get(PARAMETERS) or ()), tensor]
        for own, field in patterns.items() if len(parts) > 1 else ():
            pattern = {rf".*\.{tensor}": getattr(usual, own) * len(parts)}
            fields[field] = {**(fields.get(field) or {}), **pattern}


def _is(target: str, old: str) -> bool:
    return f".{target}".endswith(f".{old}")


def _leaves(fields: Mapping[str, Any], known: list[Site], table: Mapping[str, str]) -> set[str]:
    """The last parts of all names that a pattern matches; of the experts their former names."""
    wholes = [site for site in known if site.rows is None]
    if fields["target_modules"].lower() == "all-linear":
        linear = [s for s in wholes if s.geometry.kind == "linear" and s.parameter is None]
        heads = [site for site in linear if "head" in site.roles]
        return {s.name.rpartition(".")[2] for s in linear if s not in heads} | set(table)
    homes = {site.homes[0]: site.module for site in wholes}
    tensors = [f"{home}.{name}" for home, module in homes.items() for name in module._parameters]
    old = [
        f"{key.rpartition('.')[0]}.{one}"
        for key in tensors
        for one, tensor in table.items()
        if key.endswith(f".{tensor}") and "." not in tensor
    ]
    every = [*homes, *tensors, *old]
    return {name.rpartition(".")[2] for name in every if is_target(fields, name, ())}
