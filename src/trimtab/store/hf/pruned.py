"""Ranks that differ by what was pruned: `rank_pattern` holds, for each site, which are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import InputError
from trimtab.core.method import Method, Names
from trimtab.core.site import Site
from trimtab.store.hf.fields import CONFIG

_ENDING = ".lora_E"


def spread(
    config: Mapping[str, Any],
    names: Names,
    site: Site,
    path: str,
    method: Method,
    tensors: dict[str, Tensor],
) -> None:
    """A site's tensors at their full rank, zero where they were pruned, and its mask."""
    rank = method.rank  # type: ignore[attr-defined]
    kept = _kept(config, path, rank)
    tensors[f"{site.name}.{method.name}.mask"] = torch.tensor(kept, dtype=torch.float32)
    index = torch.tensor(kept).nonzero()[:, 0]
    for own, axis in names.masked.items():
        key = f"{site.name}.{method.name}.{own}"
        tensor = tensors.get(key)
        if tensor is None or tensor.ndim <= axis or tensor.shape[axis] != len(index):
            continue  # which is refused where shapes are checked
        shape = [rank if i == axis else n for i, n in enumerate(tensor.shape)]
        tensors[key] = tensor.new_zeros(shape).index_copy(axis, index, tensor)


def _kept(config: Mapping[str, Any], path: str, rank: int) -> list[bool]:
    for name, kept in (config.get("rank_pattern") or {}).items():
        if name.partition(_ENDING)[0] == path:
            whole = isinstance(kept, list) and all(isinstance(one, bool) for one in kept)
            if not whole or len(kept) != rank:
                raise InputError(
                    f"{CONFIG}: rank_pattern of {name!r} must be {rank} times true or false"
                )
            return list(kept)
    return [True] * rank


def left(names: Names, own: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """What of a tensor is left under its site's mask."""
    index = mask.nonzero()[:, 0]
    return tensor.index_select(names.masked[own], index) if own in names.masked else tensor


def pattern(masks: Mapping[str, Tensor]) -> dict[str, list[bool]] | None:
    """`rank_pattern`, where anything was pruned."""
    if all(mask.bool().all() for mask in masks.values()):
        return None
    return {f"{site}{_ENDING}": mask.bool().tolist() for site, mask in masks.items()}
