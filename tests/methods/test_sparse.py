"""Values at fixed places: where they are, what Fisher information chooses, what stays zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.init import fisher

X, Y = torch.randn(24, 20), torch.randint(0, 10, (24,))


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(X[:10], Y[:10]), (X[10:], Y[10:])]


def information(examples: int = len(X)) -> list[Tensor]:
    """Of both maps: the summed squares of single examples' gradients."""
    model = base()
    weights = [model[0].weight, model[2].weight]
    sums = [torch.zeros_like(weight) for weight in weights]
    for x, y in zip(X[:examples], Y[:examples], strict=True):
        for total, one in zip(
            sums, torch.autograd.grad(loss(model, (x[None], y[None])), weights), strict=True
        ):
            total += one**2
    return sums


def masks(adapter: Adapter) -> list[Tensor]:
    found = []
    for _, delta in adapter.deltas():
        mask = torch.zeros(delta.site.out_features, delta.site.in_features, dtype=torch.bool)
        rows, columns = delta.tensors()["indices"].long()
        mask[rows, columns] = True
        found.append(mask)
    return found


@pytest.mark.parametrize("examples", [24, 13])
def test_fish_takes_the_largest_of_all_sites(examples: int) -> None:
    model = base()
    adapter = trimtab.attach(model, trimtab.Fish(density=0.2), ["0", "2"])
    assert fisher(model, batches(), loss=loss, examples=examples) is adapter
    expected = torch.cat([one.flatten() for one in information(examples)])
    least = expected.topk(round(0.2 * 900)).values[-1]
    assert torch.equal(torch.cat([mask.flatten() for mask in masks(adapter)]), expected >= least)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 180


def test_what_was_chosen_trains_and_is_saved(tmp_path: Path) -> None:
    model = base()
    adapter = trimtab.attach(model, trimtab.Fish(density=0.05), ["0", "2"])
    start = loss(model.eval(), (X, Y)).item()
    fisher(model.train(), batches(), loss=loss)
    optimizer = torch.optim.AdamW(trimtab.parameters(model), lr=0.1)
    counts = [method.count for _, method in adapter.entries]  # type: ignore[attr-defined]
    assert sum(counts) == 45
    assert 0 in counts  # a site may have none
    assert all(module.training for module in model.modules())
    for step in range(1, 9):
        loss(model, (X, Y)).backward()
        trimtab.after_backward(model, step, 8)
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model, (X, Y)).item() < start
    trimtab.save(model, tmp_path)
    other = base()
    assert trimtab.load(other, tmp_path).entries == adapter.entries
    assert torch.equal(other(X), model(X))
    trimtab.merge(model)
    changed = [model[i].base.weight != base()[i].weight for i in (0, 2)]
    assert sum(int(one.sum()) for one in changed) == 45


@pytest.mark.parametrize("method", [trimtab.Fish(density=0.05), trimtab.SHiRA(rank=1)])
def test_a_run_that_is_gone_on_with_is_the_run_without_a_stop(method: Any, tmp_path: Path) -> None:
    """Places, values and the optimizer's state are restored to the bit; nothing is chosen anew."""

    def steps(model: nn.Module, optimizer: Any, which: range) -> None:
        for step in which:
            loss(model.train(), batches()[step % 2]).backward()
            trimtab.after_backward(model, step, 8)
            optimizer.step()
            optimizer.zero_grad()

    def made(model: nn.Module) -> Any:
        return torch.optim.AdamW(trimtab.parameters(model), lr=0.1)

    model = base()
    adapter = trimtab.attach(model, method, ["0", "2"])
    fisher(model, batches(), loss=loss)
    places, optimizer = masks(adapter), made(model)
    steps(model, optimizer, range(1, 5))
    trimtab.save(model, tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    steps(model, optimizer, range(5, 9))

    other = base()
    torch.manual_seed(9)
    again = trimtab.load(other, tmp_path, trainable=True)
    assert [method for _, method in again.entries] == [method for _, method in adapter.entries]
    assert all(torch.equal(a, b) for a, b in zip(masks(again), places, strict=True))
    resumed = made(other)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    steps(other, resumed, range(5, 9))
    ours, theirs = again.tensors(), adapter.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert any(bool(tensor.any()) for name, tensor in ours.items() if name.endswith("values"))
    assert torch.equal(other(X), model(X))


def test_shira_keeps_its_number_at_each_site() -> None:
    model = base()
    adapter = trimtab.attach(model, trimtab.SHiRA(rank=2), ["0", "2"])
    fisher(model, batches(), loss=loss)
    for mask, score, count in zip(masks(adapter), information(), (100, 80), strict=True):
        assert torch.equal(mask, score >= score.flatten().topk(count).values[-1])
    assert {method for _, method in adapter.entries} == {trimtab.SHiRA(rank=2, mask="data")}


def test_batches_of_a_model_that_computes_its_loss() -> None:
    bert = cases.by_name("bert")
    model = bert.model()
    adapter = trimtab.attach(model, trimtab.Fish(), ["embedding", "all-linear", "head"])
    fisher(model, [bert.batch()])
    size = sum(d.site.out_features * d.site.in_features for d in adapter.members)
    assert sum(p.numel() for p in adapter.parameters()) == round(0.005 * size)
    plain, batch = bert.model(), bert.batch()
    weight, total = plain.classifier.weight, 0
    for i in range(2):
        own = plain(**{key: value[i : i + 1] for key, value in batch.items()}).loss
        total = total + torch.autograd.grad(own, weight)[0] ** 2
    chosen = dict(zip([d.site.name for d in adapter.members], masks(adapter), strict=True))
    head = chosen["classifier"]
    assert total[head].min() >= total[~head].max()  # type: ignore[index]


def test_training_without_the_choice_is_refused(tmp_path: Path) -> None:
    model = base()
    trimtab.attach(model.train(), trimtab.Fish(), ["0"])
    with pytest.raises(trimtab.StateError, match=r"places are random: call trimtab.init.fisher"):
        trimtab.parameters(model)
    with pytest.raises(trimtab.StateError, match="'default', fish: its places are random"):
        model(X)
    with torch.no_grad():
        model(X)
    model.eval()(X).sum().backward()
    with pytest.raises(trimtab.StateError, match=r"places are random: call trimtab.init.fisher"):
        trimtab.after_backward(model, 1, 2)
    model._trimtab.switch.trained.add("default")  # by a compiled model, where none of this is asked
    with pytest.warns(UserWarning, match=r"trained before it was ready: fish: its places are"):
        trimtab.save(model, tmp_path)


def test_a_random_mask_trains_where_it_is_asked_for(tmp_path: Path) -> None:
    """The paper's control; and data may choose all the same."""
    model = base().train()
    method = trimtab.Fish(density=0.1, mask="random", seed=3)
    adapter = trimtab.attach(model, method, ["0", "2"])
    assert [int(mask.sum()) for mask in masks(adapter)] == [60, 30]
    loss(model, (X, Y)).backward()
    trimtab.after_backward(model, 1, 2)
    assert len(trimtab.parameters(model)) == 2
    trimtab.save(model, tmp_path)
    assert trimtab.load(base(), tmp_path).entries == adapter.entries
    fisher(model, batches(), loss=loss)
    assert {m.mask for _, m in adapter.entries} == {"fisher"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("ready", [False, True])
def test_what_does_not_train_need_not_be_ready(ready: bool, tmp_path: Path) -> None:
    """A file with random places, or with chosen ones, to be used as it is."""
    model = base()
    trimtab.attach(model, trimtab.Fish(), ["0"])
    if ready:
        fisher(model, batches(), loss=loss)
    trimtab.save(model, tmp_path)
    other = base()
    trimtab.load(other, tmp_path)
    with pytest.warns(UserWarning, match="nothing trains"):
        assert trimtab.parameters(other) == []
    trimtab.detach(other)
    trimtab.load(other, tmp_path, trainable=True)
    if ready:
        assert len(trimtab.parameters(other)) == 1
    else:
        with pytest.raises(trimtab.StateError, match="places are random"):
            trimtab.parameters(other)


def trained(model: nn.Module) -> None:
    for parameter in model._trimtab.adapter(None).parameters():
        parameter.data += 1


NOT_NOW: dict[str, tuple[Any, Any, Any, str]] = {
    "no places": (trimtab.LoRA(), None, batches(), "has no places to choose"),
    "trained": (trimtab.Fish(), trained, batches(), "was trained: its places are chosen before"),
    "inactive": (trimtab.Fish(), lambda m: trimtab.activate(m, None), [], "is not active"),
    "twice": (
        trimtab.Fish(),
        lambda m: fisher(m, batches(), loss=loss),
        batches(),
        "chosen already",
    ),
    "nonzero": (trimtab.SHiRA(mask="nonzero"), None, batches(), "no places to choose"),
    "no example": (trimtab.Fish(), None, [], "hold no example"),
    "uneven": (trimtab.Fish(), None, [(X, Y[:5])], r"sizes \[5, 24\]"),
    "no number": (trimtab.Fish(), None, [(X * float("nan"), Y)], "not finite"),
}


@pytest.mark.parametrize(("method", "before", "given", "match"), NOT_NOW.values(), ids=NOT_NOW)
def test_when_there_is_nothing_to_choose(method: Any, before: Any, given: Any, match: str) -> None:
    model = base()
    adapter = trimtab.attach(model, method, ["0", "2"])
    if before is not None:
        before(model)
    kept = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    with pytest.raises(trimtab.TrimtabError, match=match):
        fisher(model, given, loss=loss)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter.tensors().items())


def test_no_loss() -> None:
    model = base()
    trimtab.attach(model, trimtab.Fish(), ["0"])
    with pytest.raises(trimtab.InputError, match="computes no loss of a batch"):
        fisher(model, [X])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (lambda model, batch: torch.tensor(1.0), r"is \(\) without a gradient"),
        (lambda model, batch: model(batch[0]), r"one number .* and is \(1, "),
        (lambda model, batch: 1.0, "and is float"),
    ],
)
def test_what_is_no_loss(given: Any, match: str) -> None:
    model = base()
    trimtab.attach(model, trimtab.Fish(), ["0"])
    with pytest.raises(trimtab.InputError, match=match):
        fisher(model, batches(), loss=given)


def test_zeros_of_a_pruned_model_stay() -> None:
    model = base()
    for i in (0, 2):
        weight = model[i].weight.data
        weight[weight.abs() < weight.abs().median()] = 0
    zeros = [model[i].weight == 0 for i in (0, 2)]
    adapter = trimtab.attach(model, trimtab.SHiRA(mask="nonzero"), ["0", "2"])
    assert sum(p.numel() for p in adapter.parameters()) == 900 - sum(int(z.sum()) for z in zeros)
    trained(model)
    trimtab.merge(model)
    for i, zero in zip((0, 2), zeros, strict=True):
        assert torch.equal(model[i].base.weight == 0, zero)


def test_the_largest_weights() -> None:
    model = base()
    adapter = trimtab.attach(model, trimtab.SHiRA(rank=1, mask="magnitude"), ["0"])
    size = model[0].base.weight.abs()
    assert torch.equal(masks(adapter)[0], size >= size.flatten().topk(50).values[-1])
