"""What HF PEFT writes, as the oracle for what is read and written here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Theirs:
    """A folder that HF PEFT wrote, its configuration, and what the adapted model computes there."""

    folder: Path
    config: Any
    architecture: cases.Architecture
    logits: Tensor


@pytest.fixture
def peft_writes(tmp_path: Path) -> Callable[[cases.Architecture, Any], Theirs]:
    """peft_writes(architecture, config) -> its folder, every trained parameter drawn at random."""
    import peft

    def write(architecture: cases.Architecture, config: Any) -> Theirs:
        model = peft.get_peft_model(architecture.model(), config).eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / "theirs"
        model.save_pretrained(folder, save_embedding_layers=False)
        return Theirs(folder, config, architecture, cases.logits(model, architecture.batch()))

    return write
