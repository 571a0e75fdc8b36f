"""How HF PEFT's files name what Uni-LoRA has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.names import Form, Names

_INDICES, _SCALES = ".unilora_indices_", ".unilora_scales_"
_NORM = "base_model.unilora_norm"


def narrow(length: int) -> torch.dtype:
    """The smallest whole numbers that count so far."""
    return torch.uint8 if length <= 2**8 else torch.int16 if length <= 2**15 else torch.int32


def _read(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """There, a file with indices has what scales each of them, which follows from all of them."""
    found = {key: tensor for key, tensor in tensors.items() if _SCALES not in key}
    indices = {key: tensor for key, tensor in found.items() if _INDICES in key}
    if not indices:
        return found
    length = config.get("theta_d_length", 256)
    every = torch.cat([one.flatten().long() for one in indices.values()])
    if ((every < 0) | (every >= length)).any():
        raise InputError(f"shared: the file has indices beyond its theta_d_length={length}")
    counts = torch.bincount(every, minlength=length)
    norm = torch.where(counts > 0, counts.float().rsqrt(), 0.0)
    for key, index in indices.items():
        scales = tensors.get(key.replace(_INDICES, _SCALES))
        expected = norm[index.long()]
        fits = scales is not None and scales.shape == expected.shape
        if scales is None or not fits or not scales.float().allclose(expected, rtol=1e-2):
            raise InputError(f"shared: what scales {key!r} is not 1 / √(how often each is used)")
        found[key] = index.to(narrow(length))
    return {**found, _NORM: norm}


def _write(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in tensors.items() if key != _NORM}
    for key, index in tensors.items():
        if _INDICES in key:
            found[key] = index.long()
            found[key.replace(_INDICES, _SCALES)] = tensors[_NORM][index.long()]
    return found


UNILORA_NAMES = Names(
    peft_type="UNILORA",
    tensors={"A": "unilora_indices_A", "B": "unilora_indices_B"},
    fields={
        "rank": "r",
        "length": "theta_d_length",
        "dropout": "unilora_dropout",
        "bound": "init_theta_d_bound",
        "seed": "proj_seed",
    },
    transposed=True,
    biases="unilora_only",
    patterns=(),
    common={"theta": "unilora_theta_d", "norm": "unilora_norm"},
    drawn=("A", "B", "norm"),
    saved="save_indices",
    left_out=True,
    form=Form(_read, _write),
)
