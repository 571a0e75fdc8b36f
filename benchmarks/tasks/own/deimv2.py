"""DEIMv2 (Huang et al. 2025, arXiv:2509.20787) by its authors' weights.

They go from the encoder's states to the scores of queries directly, where transformers has a linear
map and a norm between, which no file fills: here they are the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.tasks.object_detection import ObjectDetection


@dataclass(frozen=True, kw_only=True)
class Detection(ObjectDetection):
    def model(
        self, name: str, labels: Sequence[str], processor: Any, dtype: torch.dtype, dropout: bool
    ) -> tuple[Any, list[str]]:
        model, fresh = super().model(name, labels, processor, dtype, dropout)
        model.model.enc_output = nn.Identity()
        return model, [key for key in fresh if not key.startswith("model.enc_output.")]
