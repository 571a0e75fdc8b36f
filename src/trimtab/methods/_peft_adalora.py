"""How HF PEFT's files name what AdaLoRA has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.core.names import Fields, Names

_NAMES = {"P": "lora_B", "Q": "lora_A", "E": "lora_E"}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Its scale is that of rank one where alpha is none; how many steps there were is not kept."""
    found = {key: config[key] for key in ("tinit", "tfinal") if key in config}
    alpha = config.get("lora_alpha", 8)
    return found | {"alpha": alpha if alpha > 0 else config.get("init_r", 12)}


def _write(method: Any) -> dict[str, Any]:
    """Steps there must leave one between the first and the last."""
    steps = {"tinit": method.tinit, "tfinal": method.tfinal}
    return {"lora_alpha": method.alpha, **steps, "total_step": sum(steps.values()) + 1}


ADALORA_NAMES = Names(
    peft_type="ADALORA",
    tensors=_NAMES,
    fields={
        "rank": "init_r",
        "target": "target_r",
        "dropout": "lora_dropout",
        "interval": "deltaT",
        "beta1": "beta1",
        "beta2": "beta2",
        "orthogonality": "orth_reg_weight",
    },
    transposed=True,
    biases="lora_only",
    tokens=True,
    at={"conv": _NAMES},
    patterns=(),
    columns=("E",),
    state=[f"{name}_{kind}" for name in "PQE" for kind in ("mean", "spread")],
    masked={"P": 1, "Q": 0, "E": 0},
    more=Fields(("lora_alpha", "tinit", "tfinal", "total_step", "r"), _read, _write),
)
