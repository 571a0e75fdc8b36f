"""What the papers say of LoReFT: positions of the prompt, orthonormal rows; what blocks give on."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.layout import plain
from trimtab.methods.reft import orthonormal

architectures = pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])


def hosted(model: nn.Module) -> list[Any]:
    return list(model._trimtab.adapter("default").hosts.values())  # type: ignore[union-attr]


def moved(name: str, method: Any, to: Any = None) -> tuple[nn.Module, dict[str, Tensor]]:
    model = cases.by_name(name).model()
    cases.perturb(trimtab.attach(model, method, to), by=0.2)
    return model, cases.by_name(name).batch()


def edited(name: str, method: Any, **changes: Any) -> Tensor:
    """Which positions the first block's output changes at, by hand of its hooks."""
    model, batch = moved(name, method)
    host = hosted(model)[0]
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, y: Any) -> None:
        outputs.append(y if isinstance(y, Tensor) else y[0])

    plain(host).register_forward_hook(keep)
    host.register_forward_hook(keep)
    with torch.no_grad():
        model(**{**batch, **changes})
    return (outputs[1] - outputs[0]).abs().sum(-1) > 1e-4


@architectures
def test_reft_edits_the_first_and_last_real_tokens(name: str) -> None:
    found = edited(name, trimtab.ReFT(first=1, last=2))
    assert found.long().tolist() == [[1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(("first", "last"), [(1, 2), (3, 4)], ids=["apart", "overlapping"])
def test_an_edit_for_each_end(first: int, last: int) -> None:
    """Section 4: intervention parameters tied or not between prefix and suffix positions."""
    model, batch = moved("bert", trimtab.ReFT(rank=2, first=first, last=last, tied=False))
    host = hosted(model)[0]
    p = host.stack("default")["reft"]
    assert set(p.tensors()) == {f"{name}_{end}" for name in "AWb" for end in ("first", "last")}
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, y: Any) -> None:
        outputs.append(y if isinstance(y, Tensor) else y[0])

    plain(host).register_forward_hook(keep)
    host.register_forward_hook(keep)
    cases.logits(model, batch)
    h, found = outputs
    expected = h.clone()
    for i, real in enumerate(batch["attention_mask"].bool()):
        positions = real.nonzero().flatten().tolist()
        for rank, at in enumerate(positions):
            before, after = rank + 1, len(positions) - rank
            if before > first and after > last:
                continue
            end = "last" if before > first or (after <= last and after < before) else "first"
            A, W, b = (p.tensors()[f"{name}_{end}"] for name in "AWb")
            R = orthonormal(A)
            expected[i, at] += R.mT @ (W @ h[i, at] + b - R @ h[i, at])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_reft_edits_the_prompt_of_labelled_examples() -> None:
    labels = cases.tokens(2, 7)
    labels[0, :4] = labels[1, :2] = -100
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 0] = 0  # padded on the left
    options = {"labels": labels, "attention_mask": mask}
    found = edited("llama", trimtab.ReFT(first=1, last=1), **options)
    assert found.long().tolist() == [[0, 1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_reft_edits_no_generated_token(name: str) -> None:
    model, batch = moved(name, trimtab.ReFT(first=1, last=1))
    prompt = batch["input_ids"][:1, :5]
    with torch.no_grad():
        first = model(input_ids=prompt, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        after = model(input_ids=token, past_key_values=first.past_key_values).logits[:, -1]
    both = torch.cat([prompt, token], 1)
    labels = torch.cat([torch.full_like(prompt, -100), token], 1)
    expected = cases.logits(model, {"input_ids": both, "labels": labels})[:, -1]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


def test_reft_keeps_orthonormal_rows_through_training() -> None:
    model, batch = moved("llama", trimtab.ReFT())
    optimizer = torch.optim.SGD(trimtab.parameters(model), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        cases.loss(model, batch).backward()
        optimizer.step()
    for host in hosted(model):
        R = orthonormal(host.stack("default")["reft"].A)
        torch.testing.assert_close(R @ R.mT, torch.eye(4), rtol=0, atol=1e-5)


@architectures
def test_blocks_give_what_they_gave(name: str) -> None:
    """Attentions and caches that blocks hand on come out as without an adapter."""
    model, batch = cases.by_name(name).model(), cases.by_name(name).batch()
    expected = model(**batch, output_hidden_states=True)
    trimtab.attach(model, trimtab.ReFT())
    found = model(**batch, output_hidden_states=True)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found.logits, expected.logits)
