"""AdaLoRA's schedule, step by step against HF PEFT's; its masks in training; its penalty."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

import trimtab
from trimtab.core.adapter import record

SITES = ("0", "2", "4")


def base() -> nn.Sequential:
    torch.manual_seed(0)
    maps = nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)
    return nn.Sequential(*maps)


def deltas(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    adapter = record(model).adapter(None)
    return {site: delta.tensors() for site, delta in adapter.deltas()}


SCHEDULES = [
    {"tinit": 0, "tfinal": 0, "interval": 1, "target": 2},
    {"tinit": 4, "tfinal": 6, "interval": 1, "target": 1},
    {"tinit": 3, "tfinal": 5, "interval": 4, "target": 3},
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_same_gradients_give_the_same_masks(schedule: dict[str, int]) -> None:
    """One whole schedule: at each step the same numbers and gradients go to both. (They mask after
    the optimizer's step, we before it and again at use: between allotments λ is not compared.)
    """
    total, rank = 24, 5
    last = total - schedule["tfinal"]
    ours = base()
    trimtab.attach(ours, trimtab.AdaLoRA(rank=rank, **schedule), list(SITES))
    config = peft.AdaLoraConfig(
        target_modules=list(SITES),
        init_r=rank,
        target_r=schedule["target"],
        tinit=schedule["tinit"],
        tfinal=schedule["tfinal"],
        deltaT=schedule["interval"],
        total_step=total,
    )
    theirs: Any = peft.get_peft_model(base(), config)
    own = dict(theirs.named_parameters())
    left = []
    for step in range(1, total + 1):
        for site, tensors in deltas(ours).items():
            for name, letter in {"P": "B", "Q": "A", "E": "E"}.items():
                other = own[f"base_model.model.{site}.lora_{letter}.default"]
                values, slopes = torch.randn(2, *tensors[name].shape)
                for tensor in (tensors[name], other):
                    tensor.data = values.reshape(tensor.shape).clone()
                    tensor.grad = slopes.reshape(tensor.shape).clone()
        trimtab.after_backward(ours, step, total)
        theirs.base_model.update_and_allocate(step)
        kept = 0
        allotted = schedule["tinit"] < step and step % schedule["interval"] == 0
        if not allotted and step < last:
            continue
        for site, tensors in deltas(ours).items():
            other = own[f"base_model.model.{site}.lora_E.default"]
            assert torch.equal(tensors["E"], other[:, 0]), (step, site)
            kept += int((tensors["E"] != 0).sum())
        left.append(kept)
    assert sorted(left, reverse=True) == left
    assert left[-1] == schedule["target"] * len(SITES)
    assert all(int(t["mask"].sum()) == int((t["E"] != 0).sum()) for t in deltas(ours).values())


def trained(method: trimtab.AdaLoRA, steps: int) -> nn.Module:
    model = base()
    trimtab.attach(model, method, list(SITES))
    optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=1e-2)
    x, y = torch.randn(32, 6), torch.randn(32, 4)
    for step in range(1, steps + 1):
        loss = nn.functional.mse_loss(model(x), y) + trimtab.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        trimtab.after_backward(model, step, steps)
        optimizer.step()
    return model


def test_after_training_the_budget_holds() -> None:
    """The optimizer's last step moves what was masked; law and merging leave it out."""
    model = trained(trimtab.AdaLoRA(rank=4, target=2, tinit=5, tfinal=5), 30)
    ranks = []
    for site, delta in record(model).adapter(None).deltas():
        change = delta.method.delta(delta.values(torch.float32))
        mask = delta.tensors()["mask"]
        ranks.append(int(torch.linalg.matrix_rank(change.detach(), rtol=1e-5)))
        assert ranks[-1] == int(mask.sum()), site
    assert sum(ranks) == 2 * len(SITES)
    x = torch.randn(3, 6)
    before = model(x)
    trimtab.merge(model)
    torch.testing.assert_close(model(x), before)


def test_what_was_masked_may_come_back() -> None:
    """Between two allotments every triplet acts and learns again."""
    model = base().eval()
    trimtab.attach(model, trimtab.AdaLoRA(rank=4, target=1, interval=2), list(SITES))
    model(torch.randn(8, 6)).square().sum().backward()
    for step, full in ((1, True), (2, False), (3, True), (4, False)):
        trimtab.after_backward(model, step, 10)
        masks = torch.cat([tensors["mask"] for tensors in deltas(model).values()])
        assert bool(masks.all()) == full
    model.zero_grad()
    model(torch.randn(8, 6)).square().sum().backward()
    for tensors in deltas(model).values():
        assert tensors["E"].grad is not None
        assert tensors["E"].grad.all()


def test_the_penalty_is_that_of_the_authors_code() -> None:
    method = trimtab.AdaLoRA(rank=3, target=1, orthogonality=0.7)
    model = base()
    trimtab.attach(model, method, list(SITES))
    norms = []
    for tensors in deltas(model).values():
        for gram in (tensors["P"].T @ tensors["P"], tensors["Q"] @ tensors["Q"].T):
            norms.append((gram - torch.eye(3)).square().sum().sqrt())
    torch.testing.assert_close(trimtab.penalty(model), 0.7 * torch.stack(norms).mean())
    trimtab.detach(model)
    trimtab.attach(model, trimtab.AdaLoRA(orthogonality=0), list(SITES))
    assert trimtab.penalty(model) == 0


def test_training_draws_the_vectors_to_be_orthogonal() -> None:
    model = trained(trimtab.AdaLoRA(rank=4, target=4, orthogonality=5.0), 300)
    for tensors in deltas(model).values():
        gram = tensors["Q"].detach() @ tensors["Q"].detach().T
        assert (gram - torch.eye(4)).abs().max() < 0.1


def test_a_schedule_that_does_not_fit() -> None:
    model = base()
    trimtab.attach(model, trimtab.AdaLoRA(tinit=5, tfinal=5), list(SITES))
    with pytest.raises(trimtab.InputError, match="tinit must be less than 5, of 10 steps, not 5"):
        trimtab.after_backward(model, 1, 10)
    with pytest.raises(trimtab.StateError, match="no gradients"):
        trimtab.after_backward(model, 1, 11)
