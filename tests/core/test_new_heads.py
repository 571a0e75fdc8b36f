"""A head that no checkpoint filled: who leaves it frozen at random is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cases
import pytest
import transformers as hf

import trimtab


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """A checkpoint of the body alone."""
    cases.by_name("bert").model().bert.save_pretrained(tmp_path)
    return tmp_path


def opened(folder: Path, **more: Any) -> Any:
    return hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **more)


def test_a_new_head_that_stays_at_random_is_told_of_once(body: Path) -> None:
    model = opened(body)
    with pytest.warns(UserWarning, match=r"no values for 'classifier'.*train=\['classifier'\]"):
        trimtab.attach(model, trimtab.LoRA())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trimtab.attach(model, trimtab.LoRA(), name="b", train=["classifier"])
        trimtab.attach(model, trimtab.IA3(), name="c")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (trimtab.LoRA(), {"train": "classifier"}),
        (trimtab.LoRA(), {"to": ["query", "classifier"]}),
        (trimtab.Full(), {}),
        (trimtab.Head(), {}),
        (trimtab.Layers(), {}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_head_that_trains_is_none(method: Any, more: Any, body: Path) -> None:
    trimtab.attach(opened(body), method, **more)


@pytest.mark.filterwarnings("error")
def test_a_head_that_was_filled_is_none(body: Path, tmp_path: Path) -> None:
    """By its checkpoint, or by hand; and of a model made from nothing nothing is known."""
    filled = opened(body)
    filled.load_state_dict(cases.by_name("bert").model().state_dict())
    trimtab.attach(filled, trimtab.LoRA())
    cases.by_name("bert").model().save_pretrained(tmp_path / "whole")
    trimtab.attach(opened(tmp_path / "whole"), trimtab.LoRA())
    trimtab.attach(cases.by_name("bert").model(), trimtab.LoRA())


@pytest.mark.filterwarnings("error")
def test_an_output_layer_with_added_rows_is_none(tmp_path: Path) -> None:
    cases.by_name("llama").model().save_pretrained(tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(cases.by_name("llama").model().config.vocab_size + 4)
    trimtab.attach(model, trimtab.LoRA())
