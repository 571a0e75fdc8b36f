"""What is put on a model: parts side by side, models within models, failures on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.core.delta import Tensors
from trimtab.core.errors import StateError
from trimtab.core.host import Deltas


class Attends(nn.Module):
    """A module of torch's own, which reads its projections itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x, x, x)[0]
        return found


def stir(adapter: Adapter) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_parts_of_a_parameter_have_a_delta_each() -> None:
    model = Attends()
    names = ["inner.in_proj_weight[query]", "inner.in_proj_weight[value]"]
    adapter = trimtab.attach(model, trimtab.LoRA(rank=2), to=names)
    stir(adapter)
    before = model.inner.in_proj_weight.detach().clone()
    changed = model(x := torch.randn(2, 5, 8))
    trimtab.merge(model)
    torch.testing.assert_close(model(x), changed)
    differs = (model.inner.in_proj_weight != before).any(1)
    assert differs[:8].all() and not differs[8:16].any() and differs[16:].all()
    held = {name for name, _ in model.named_parameters() if "lora" in name}
    assert len(held) == len(adapter.parameters()) == 4


def test_a_delta_does_not_take_the_place_of_another() -> None:
    deltas, empty = Deltas(), Tensors({}, torch.device("cpu"))
    deltas.add("a", "lora", empty)
    with pytest.raises(StateError, match="'lora' here already"):
        deltas.add("a", "lora", empty)
