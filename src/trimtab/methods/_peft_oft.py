"""How HF PEFT's files name what OFT has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.core.errors import InputError
from trimtab.core.names import Fields, Names

_FIELDS = (
    *("r", "oft_block_size", "coft", "eps"),
    *("use_cayley_neumann", "num_cayley_neumann_terms", "peft_version"),
)


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """There, a series of five terms is what is done where nothing is said; before version 0.18
    it was another one.
    """
    terms = config.get("num_cayley_neumann_terms", 5)
    version = str(config.get("peft_version") or "0.0").split(".")
    if config.get("use_cayley_neumann", True) and [int(one) for one in version[:2]] < [0, 18]:
        raise InputError("oft: use_cayley_neumann of a file from before peft_version 0.18")
    blocks = config.get("r", 0)
    return {
        "blocks": blocks,
        "block": 32 if blocks else config.get("oft_block_size", 32),
        "neumann": terms if config.get("use_cayley_neumann", True) else 0,
        "eps": config.get("eps", 6e-5) if config.get("coft") else 0.0,
    }


def _write(method: Any) -> dict[str, Any]:
    return {
        "r": method.blocks,
        "oft_block_size": 0 if method.blocks else method.block,
        "coft": method.eps > 0,
        **({"eps": method.eps} if method.eps > 0 else {}),
        "use_cayley_neumann": method.neumann > 0,
        **(
            {"num_cayley_neumann_terms": method.neumann, "peft_version": "0.18.0"}
            if method.neumann
            else {}
        ),
    }


OFT_NAMES = Names(
    peft_type="OFT",
    tensors={"S": "oft_R.weight"},
    fields={"share": "block_share", "dropout": "module_dropout"},
    biases="oft_only",
    at={"embedding": {"S": "oft_embedding_R.weight"}, "conv": {"S": "oft_R.weight"}},
    patterns=(),
    more=Fields(_FIELDS, _read, _write),
)
