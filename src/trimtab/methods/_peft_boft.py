"""How HF PEFT's files name what BOFT has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.core.names import Fields, Names

_TENSORS = {"R": "boft_R", "s": "boft_s"}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """There, either the size of the blocks is zero or their number."""
    blocks = config.get("boft_block_num", 0)
    return {"blocks": blocks, "block": 4 if blocks else config.get("boft_block_size", 4)}


def _write(method: Any) -> dict[str, Any]:
    size = 0 if method.blocks else method.block
    return {"boft_block_size": size, "boft_block_num": method.blocks}


BOFT_NAMES = Names(
    peft_type="BOFT",
    tensors=_TENSORS,
    fields={"factors": "boft_n_butterfly_factor", "dropout": "boft_dropout"},
    biases="boft_only",
    at={"conv": _TENSORS},
    columns=("s",),
    rows=("s",),
    patterns=(),
    more=Fields(("boft_block_size", "boft_block_num"), _read, _write),
)
