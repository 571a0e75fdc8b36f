"""Tensors start as torch and HF PEFT start theirs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trimtab.core.draw import kaiming


@pytest.mark.parametrize("shape", [(8, 768), (3, 7), (2, 5, 3), (4, 0)], ids=str)
def test_kaiming_is_torchs_to_the_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    ours = kaiming(*shape)
    torch.manual_seed(3)
    theirs = torch.empty(shape)
    if theirs.numel():  # torch warns of what has no elements
        nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    assert torch.equal(ours, theirs)
