"""Parts of a batch side by side give the gradients of the whole batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.tune import replicas
from trimtab.tune.replicas import Replicas

ARCHITECTURE = cases.by_name("bert")


def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"]) + trimtab.penalty(model)


def made(method: trimtab.core.method.Method, rows: int) -> tuple[nn.Module, dict[str, Any]]:
    model = ARCHITECTURE.model().train()
    trimtab.attach(model, method)
    ids = torch.randint(5, cases.VOCAB, (rows, 7))
    labels = torch.arange(rows) % model.config.num_labels
    return model, {"input_ids": ids, "labels": labels, "absent": None}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: gradient.clone() for name, gradient in cases.gradients(model).items()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("rows", [8, 7, 1])
@pytest.mark.parametrize("count", [2, 3])
def test_the_gradients_are_those_of_the_whole(count: int, rows: int) -> None:
    """Of the whole batch and of its micro-batches; also after an optimizer's step."""
    model, batch = made(trimtab.LoRA(), rows)
    optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=1e-2)
    side_by_side = Replicas(model, count, loss)
    for _ in range(3):
        value = loss(model, batch)
        value.backward()
        expected = gradients(model)
        for _ in range(2):
            half = side_by_side.backward(batch, 0.5)
            torch.testing.assert_close(half, value.detach() / 2)
        found = {name: gradient.clone() for name, gradient in cases.gradients(model).items()}
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        optimizer.step()
        optimizer.zero_grad()
    side_by_side.close()


def test_what_fails_in_a_part_is_raised() -> None:
    model, batch = made(trimtab.LoRA(), 8)
    side_by_side = Replicas(model, 2, loss)
    batch["labels"][7] = 99
    with pytest.raises(IndexError):
        side_by_side.backward(batch)
    batch["labels"][7] = 0
    side_by_side.backward(batch)
    found = gradients(model)
    loss(model, batch).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    side_by_side.close()


def test_copies_share_what_trains_too() -> None:
    model, _ = made(trimtab.Full(), 8)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    copy = replicas._sharing(model)
    assert {parameter.data_ptr() for parameter in copy.parameters()} == pointers
    assert not {id(one) for one in replicas._trained(copy)} & {
        id(one) for one in model.parameters()
    }


def test_new_threads_take_what_was_set_before() -> None:
    model, batch = made(trimtab.LoRA(), 8)
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        side_by_side = Replicas(model, 2, loss)
        side_by_side.backward(batch)
        side_by_side.close()
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [4]


def test_a_step_that_draws_stays_whole() -> None:
    model, batch = made(trimtab.LoRA(dropout=0.1), 8)
    assert replicas.choose(model, batch, loss) == (1, {})


def test_choosing_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model, batch = made(trimtab.LoRA(), 8)
    before = cases.state(model)
    count, took = replicas.choose(model, batch, loss)
    assert took.keys() == {"1", "2"}
    assert str(count) == min(took, key=lambda name: took[name])
    assert not cases.gradients(model)
    for name, tensor in cases.state(model).items():
        assert torch.equal(tensor, before[name]), name
