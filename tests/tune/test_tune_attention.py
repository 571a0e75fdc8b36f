"""Which implementations of attention a model may be given: those under which it gives what it gave,
in every part of what it gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from trimtab.tune import hardware
from trimtab.tune.choices import _agreeing


class Detector(nn.Module):
    """Large scores and small boxes; `broken` names what moves the boxes."""

    broken, name = "none", "eager"

    def forward(self, x: Tensor) -> Any:
        boxes = x / 100 + (0.005 if self.name == self.broken else 0.0)
        return SimpleNamespace(loss=x.sum(), scores=1000 * x, boxes=boxes, kept=["a"])


def agreeing(model: nn.Module, batch: dict[str, Tensor], names: list[str]) -> list[str]:
    task = SimpleNamespace(loss=lambda model, batch: (None, model(**batch)))
    return _agreeing(SimpleNamespace(model=model, task=task), names, batch)  # type: ignore[arg-type]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector takes any name."""

    def take(model: Any, name: str) -> None:
        if name == "unknown":
            raise ValueError(name)
        model.name = name

    monkeypatch.setattr(hardware, "take_attention", take)


@pytest.mark.usefixtures("named")
def test_boxes_do_not_hide_behind_scores() -> None:
    model, batch = Detector(), {"x": torch.linspace(0.1, 1, 10)}
    assert agreeing(model, batch, ["eager", "sdpa", "unknown"]) == ["eager", "sdpa"]
    model.broken = "sdpa"
    assert agreeing(model, batch, ["eager", "sdpa", "unknown"]) == ["eager"]


@pytest.mark.usefixtures("named")
def test_of_numbers_that_are_none_the_first_is_taken() -> None:
    batch = {"x": torch.full((3,), torch.nan)}
    assert agreeing(Detector(), batch, ["eager", "sdpa"]) == ["eager"]
    assert agreeing(Detector(), batch, ["unknown", "sdpa"]) == ["sdpa"]


def test_a_reader_of_answers_has_a_choice() -> None:
    """It gives starts and ends, and no logits."""
    config = hf.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf.BertForQuestionAnswering(config)
    batch = {"input_ids": torch.arange(1, 13).view(2, 6)}
    assert agreeing(model, batch, ["eager", "sdpa"]) == ["eager", "sdpa"]
