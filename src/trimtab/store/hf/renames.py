"""Modules that transformers 5 renamed: an adapter made under version 4 says the old names.

The renamings are those that transformers itself applies to checkpoints of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class Renames:
    """Names of version 4 to names of this model, and back."""

    def __init__(self, model: nn.Module) -> None:
        self._there, self._back = _renamings(model)

    def current(self, path: str) -> str:
        """What a module of version 4 is called now."""
        return _apply(self._there, path)

    def former(self, path: str) -> str:
        """What a module was called in version 4."""
        return _apply(self._back, path)


def _apply(renamings: Sequence[Any], path: str) -> str:
    key = f"{path}.weight"  # the renamings are written for the keys of tensors
    for renaming in renamings:
        key = renaming.rename_source_key(key)[0]
    return key.removesuffix(".weight")


def _renamings(model: nn.Module) -> tuple[list[Any], list[Any]]:
    if not hasattr(getattr(model, "config", None), "model_type"):
        return [], []
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    if not isinstance(model, PreTrainedModel):
        return [], []
    every = get_model_conversion_mapping(model, add_legacy=False)
    there = [one for one in every if isinstance(one, WeightRenaming)]
    return there, [one.reverse_transform() for one in reversed(there)]
