"""What the paper says of multitask prompts: a shared prompt, a matrix of low rank for each task."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.methods.multitask_prompt import start_from

architectures = pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
METHOD = trimtab.MultitaskPrompt(length=3, tasks=3, rank=2)


def moved(name: str, method: Any = METHOD) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    model = cases.by_name(name).model()
    adapter = trimtab.attach(model, method)
    cases.perturb(adapter, by=0.3)
    batch = cases.by_name(name).batch()
    return model, adapter, batch


@architectures
def test_each_example_has_the_prompt_of_its_task(name: str) -> None:
    """As a plain prompt of P times the task's matrix."""
    model, adapter, batch = moved(name)
    mixed = cases.logits(model, {**batch, "task_ids": torch.tensor([2, 0])})
    (p,) = adapter.members
    for row, task in enumerate([2, 0]):
        plain = cases.by_name(name).model()
        (q,) = trimtab.attach(plain, trimtab.PromptTuning(length=3)).members
        with torch.no_grad():
            q.P.copy_(p.P * (p.U[task] @ p.V[task]))
        found = cases.logits(plain, {key: tensor[[row]] for key, tensor in batch.items()})
        torch.testing.assert_close(mixed[[row]], found, rtol=1e-4, atol=1e-5)


def test_every_task_starts_at_the_shared_prompt_and_can_leave_it() -> None:
    model, batch = cases.by_name("llama").model(), cases.by_name("llama").batch()
    (p,) = trimtab.attach(model, METHOD).members
    assert torch.equal(p.U @ p.V, torch.ones(3, 3, 32))
    optimizer = torch.optim.SGD(trimtab.parameters(model), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch, task_ids=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    matrices = p.U @ p.V
    assert torch.linalg.matrix_rank(matrices[0]) == 2
    assert torch.equal(matrices[2], torch.ones(3, 32))  # which no example was of
    cases.assert_differs(matrices[0], matrices[1])


def test_tasks_are_checked() -> None:
    model, _, batch = moved("bert")
    with pytest.raises(trimtab.InputError, match="needs a task for each example"):
        cases.logits(model, batch)
    with pytest.raises(trimtab.InputError, match="task_ids must lie in 0 … 2"):
        cases.logits(model, {**batch, "task_ids": torch.tensor([3, 0])})
    with pytest.raises(trimtab.InputError, match="task_ids or route has 3 rows"):
        cases.logits(model, {**batch, "task_ids": torch.tensor([0, 1, 2])})
    with pytest.raises(trimtab.InputError, match="rank must be at least 1"):
        trimtab.MultitaskPrompt(rank=0)


def test_routed_and_stacked_with_plain_prompts() -> None:
    model, _, batch = moved("bert")
    cases.perturb(trimtab.attach(model, trimtab.PromptTuning(length=3), name="plain"))
    tasks = torch.tensor([2, 1])
    plain = cases.logits(model, batch)
    trimtab.activate(model, "default")
    alone = cases.logits(model, {**batch, "task_ids": tasks})
    trimtab.activate(model, trimtab.Route("default", "plain"))
    routed = cases.logits(model, {**batch, "task_ids": tasks, "route": ["plain", "default"]})
    torch.testing.assert_close(routed, torch.stack([plain[0], alone[1]]), rtol=1e-4, atol=1e-5)
    trimtab.activate(model, trimtab.Stack("plain", "default"))
    both = cases.logits(model, {**batch, "task_ids": tasks})
    one = {key: tensor[[1]] for key, tensor in batch.items()}
    found = cases.logits(model, {**one, "task_ids": tasks[[1]]})
    torch.testing.assert_close(both[[1]], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["mean", 1, "none"])
def test_a_new_task_starts_where_others_have_come_to(task: Any) -> None:
    model, source, batch = moved("bert")
    one = trimtab.MultitaskPrompt(length=3, tasks=1, rank=2)
    target = trimtab.attach(model, one, name="target")
    start_from(target, source, task)
    (p,), (q,) = target.members, source.members
    assert torch.equal(p.P, q.P)
    if task == 1:
        trimtab.activate(model, "default")
        expected = cases.logits(model, {**batch, "task_ids": torch.tensor([1, 1])})
        trimtab.activate(model, "target")
        found = cases.logits(model, {**batch, "task_ids": torch.tensor([0, 0])})
        torch.testing.assert_close(found, expected)
    elif task == "mean":
        torch.testing.assert_close(p.U[0] @ p.V[0], q.U.mean(0) @ q.V.mean(0))
    else:
        assert torch.equal(p.U[0] @ p.V[0], torch.ones(3, 32))


def test_starting_from_what_does_not_fit() -> None:
    model, source, _ = moved("bert")
    target = trimtab.attach(model, trimtab.MultitaskPrompt(length=2), name="target")
    with pytest.raises(trimtab.AdapterMismatch, match="of other shapes or ranks"):
        start_from(target, source)
    same = trimtab.attach(model, METHOD, name="same")
    with pytest.raises(trimtab.InputError, match="one of 0 … 2, not 3"):
        start_from(same, source, 3)
    lora = trimtab.attach(model, trimtab.LoRA(), name="lora")
    with pytest.raises(trimtab.AdapterMismatch, match="'lora' holds 0 multitask prompts"):
        start_from(lora, source)
