"""Leaving out what the head never reads changes no output and no gradient, or is not done."""

from __future__ import annotations

import cases
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

import trimtab
from trimtab.tune import positions

BERT = cases.by_name("bert")


def test_the_same_outputs_and_gradients_for_less_work() -> None:
    model, batch = BERT.model(), BERT.batch()
    adapter = trimtab.attach(model, trimtab.LoRA(), train=["classifier"])
    cases.perturb(adapter)
    before = cases.logits(model, batch)
    cases.loss(model, batch).backward()
    gradients = [p.grad.clone() for p in adapter.parameters()]
    model.zero_grad()

    lengths = []
    last = model.bert.encoder.layer[-1].output
    last.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    assert positions.try_narrow(model, lambda: model(**batch).logits)
    torch.testing.assert_close(cases.logits(model, batch), before, rtol=1e-5, atol=1e-6)
    cases.loss(model, batch).backward()
    for parameter, gradient in zip(adapter.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert lengths[-1] == 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_models_that_read_every_position_are_left_alone(name: str) -> None:
    architecture = cases.by_name(name)
    model, batch = architecture.model(), architecture.batch()
    before = cases.logits(model, batch)
    assert not positions.try_narrow(model, lambda: cases.logits(model, batch))
    assert torch.equal(cases.logits(model, batch), before)


def test_a_head_that_reads_more_than_the_first_position() -> None:
    model, batch = BERT.model(), BERT.batch()

    def body() -> torch.Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return model.bert(**inputs).last_hidden_state

    before = body()
    assert not positions.try_narrow(model, body)
    assert torch.equal(body(), before)


def test_a_model_without_such_a_block() -> None:
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100)
    model = DistilBertForSequenceClassification(config).eval()
    ids = torch.arange(6)[None]
    assert not positions.try_narrow(model, lambda: model(input_ids=ids).logits)
