"""An adapter goes on the model itself, before it is wrapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trimtab


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_attaching_to_a_wrapped_model_is_refused(wrap: object) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(trimtab.InputError, match="attach to the model itself, then wrap it"):
        trimtab.attach(wrap(model), trimtab.LoRA(), to="0")  # type: ignore[operator]
    assert not hasattr(model, "_trimtab")


def test_a_trained_bias_keeps_its_gradient() -> None:
    """The fused kernel stands back where the base itself trains."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    trimtab.attach(model, trimtab.LoRA(), to="0")
    model[0].bias.requires_grad_(True)
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].bias.grad is not None


def test_norms_over_channels_are_no_sites() -> None:
    """Their gain acts along the second dimension, not along the last."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Flatten())
    assert list(trimtab.attach(model, trimtab.BitFit()).hosts) == ["0"]
