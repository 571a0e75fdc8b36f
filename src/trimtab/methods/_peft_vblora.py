"""How HF PEFT's files name what VB-LoRA has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.names import Fields, Form, Names

_WHICH, _WEIGHTS = "_topk_indices", "_topk_weights"
_LEAST = -1e4  # of what is not chosen, in fp16 too


def _read(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits from the chosen vectors and their weights, of which files leave out the last one."""
    found = {k: t for k, t in tensors.items() if not k.endswith((_WHICH, _WEIGHTS))}
    for key in tensors:
        if key.endswith(_WEIGHTS) and key.removesuffix(_WEIGHTS) + _WHICH not in tensors:
            raise InputError(f"vb-lora: {key!r} stands without the vectors that it weighs")
    for key, chosen in tensors.items():
        if not key.endswith(_WHICH):
            continue
        logits = key.removesuffix(_WHICH)
        weights, h = tensors.get(logits + _WEIGHTS), config.get("num_vectors", 256)
        which = chosen.long()
        shape = (*which.shape[:-1], which.shape[-1] - 1)
        if weights is None or weights.shape != shape or ((which < 0) | (which >= h)).any():
            raise InputError(f"vb-lora: {key!r} and its weights do not fit {h} vectors")
        last = 1 - weights.sum(-1, keepdim=True)
        every = torch.cat([weights, last], -1).clamp_min(torch.finfo(weights.dtype).tiny).log()
        empty = weights.new_full((*which.shape[:-1], h), _LEAST)
        found[logits] = empty.scatter(-1, which, every)
    return found


def _differs(method: Any, geometry: Any, module: Any) -> str | None:
    length = method.vector_length
    for width in (geometry.in_features, geometry.out_features):
        if width % length:
            return f"it needs widths that vector_length={length} divides, and {width} is none"
    return None


VBLORA_NAMES = Names(
    peft_type="VBLORA",
    tensors={"A": "vblora_logits_A", "B": "vblora_logits_B"},
    fields={
        "rank": "r",
        "num_vectors": "num_vectors",
        "vector_length": "vector_length",
        "topk": "topk",
        "dropout": "vblora_dropout",
        "bank_bound": "init_vector_bank_bound",
        "logits_std": "init_logits_std",
    },
    transposed=True,
    biases="vblora_only",
    patterns=(),
    common={"bank": "vblora_vector_bank"},
    more=Fields(
        ("save_only_topk_weights",),
        lambda config: {},
        lambda method: {"save_only_topk_weights": False},
    ),
    form=Form(_read, lambda config, tensors: dict(tensors)),
    differs=_differs,
)
