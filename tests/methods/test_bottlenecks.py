"""What the papers say of bottlenecks: widths, what they read, Kronecker products, tasks."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.core.bottleneck import kronecker_sum
from trimtab.core.layout import plain
from trimtab.testing import LAWS, check_method

architectures = pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])


def hosted(model: nn.Module) -> list[Any]:
    return list(model._trimtab.adapter("default").hosts.values())  # type: ignore[union-attr]


def moved(name: str, method: Any, to: Any = None) -> tuple[nn.Module, dict[str, Tensor]]:
    model = cases.by_name(name).model()
    cases.perturb(trimtab.attach(model, method, to), by=0.2)
    return model, cases.by_name(name).batch()


def test_houlsby_near_the_identity() -> None:
    model = cases.by_name("bert").model()
    before = cases.logits(model, cases.by_name("bert").batch())
    trimtab.attach(model, trimtab.Houlsby(init_std=0.01, norm=True))
    host = hosted(model)[0]
    U = host.stack("default")["houlsby"].U
    assert 0 < U.abs().max() <= 0.02
    torch.testing.assert_close(
        cases.logits(model, cases.by_name("bert").batch()), before, rtol=0, atol=0.02
    )


@pytest.mark.parametrize(("method", "width"), [(trimtab.Pfeiffer(), 2), (trimtab.Houlsby(), 64)])
def test_width_or_reduction(method: Any, width: int) -> None:
    model = cases.by_name("bert").model()
    trimtab.attach(model, method)
    assert hosted(model)[0].stack("default")[method.name].D.shape == (width, 32)


@pytest.mark.parametrize(
    "arguments", [{"activation": "swosh"}, {"width": 0}, {"reduction": 0}, {"dropout": 1.0}]
)
def test_bad_bottlenecks_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(trimtab.InputError, match=f"houlsby: {next(iter(arguments))}"):
        trimtab.Houlsby(**arguments)


class AtNorms(trimtab.Pfeiffer):
    """Where models norm the sums of sublayers and residuals."""

    targets = (r"re:.*\.(output\.LayerNorm|final_layer_norm|output_layer_norm)",)


class AtBlocks(trimtab.Pfeiffer):
    targets = ("block",)


MOST = sorted(LAWS.keys() - {"compile", "layers"})
ELSEWHERE = [
    *((AtNorms, name) for name in ("bert", "distilbert", "bart")),
    *((AtBlocks, name) for name in ("gpt2", "t5")),
]


@pytest.mark.parametrize(("method", "name"), ELSEWHERE)
def test_pfeiffer_at_norms_and_blocks_keeps_the_laws(method: Any, name: str) -> None:
    report = check_method(method(), [cases.by_name(name)], laws=MOST)
    assert [row for row in report.rows if row.outcome == "broken"] == []
    held = {row.law for row in report.rows if row.outcome == "holds"}
    assert held >= {"start", "files", "pickle", "checkpointing", "several", "stack", "route"}


def test_pfeiffer_at_a_norm_reads_the_norm_and_adds_before_it() -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 2))
    x = torch.randn(3, 6)
    before = model[0](x)
    adapter = trimtab.attach(model, trimtab.Pfeiffer(width=2, reduction=None, scale=3), "1")
    cases.perturb(adapter)
    ((_, delta),) = adapter.deltas()
    read = F.relu(F.linear(norm(before), delta.D, delta.d))
    expected = norm(before + 3 * F.linear(read, delta.U, delta.u))
    torch.testing.assert_close(model[:2](x), expected)


@architectures
def test_parallel_reads_what_the_sublayer_reads(name: str) -> None:
    """By hand: the site's output changes by the bottleneck of the entry's input."""
    model, batch = moved(name, trimtab.Parallel(width=4))
    seen: dict[str, Tensor] = {}
    site, delta = next(iter(model._trimtab.adapter("default").deltas()))  # type: ignore[union-attr]
    host, entry = model.get_submodule(site), model.get_submodule(delta.site.entry)
    handles = [
        entry.register_forward_hook(lambda m, a, y: seen.__setitem__("x", a[0])),
        host.register_forward_hook(lambda m, a, y: seen.__setitem__("y", y)),
        plain(host).register_forward_hook(lambda m, a, y: seen.__setitem__("base", y)),
    ]
    cases.logits(model, batch)
    for handle in handles:
        handle.remove()
    added = F.linear(F.relu(F.linear(seen["x"], delta.D, delta.d)), delta.U, delta.u)
    torch.testing.assert_close(seen["y"], seen["base"] + 4 * added)
    assert model._trimtab.switch.call.taps == {}  # type: ignore[union-attr]


@architectures
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_parallel_with_two_passes_before_their_backward(name: str, reentrant: bool | None) -> None:
    model, batch = moved(name, trimtab.Parallel(width=4))
    model.train()
    other = {k: v.flip(0) if k == "input_ids" else v for k, v in batch.items()}
    expected: dict[str, Tensor] = {}
    for one in (batch, other):
        cases.loss(model, one).backward()
    expected = {key: grad.clone() for key, grad in cases.gradients(model).items()}
    model.zero_grad()
    if reentrant is not None:
        kwargs = {"use_reentrant": reentrant}
        model.activation_checkpointing_enable(kwargs)  # type: ignore[operator]
    losses = [cases.loss(model, one) for one in (batch, other)]
    for loss in losses:
        loss.backward()
    assert expected
    for key, grad in cases.gradients(model).items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-4, atol=1e-5, msg=key)


def test_parallel_keeps_no_inputs_beyond_their_sublayer() -> None:
    """Under checkpointing they would be what checkpointing saves."""
    model, batch = moved("llama", trimtab.Parallel(width=4))
    loss = cases.loss(model.train(), batch)
    assert model._trimtab.switch.call.taps == {}  # type: ignore[union-attr]
    loss.backward()


def test_compacter_is_a_sum_of_kronecker_products_with_shared_slow_weights() -> None:
    A, B = torch.randn(3, 2, 4), torch.randn(3, 5, 6)
    expected = sum(torch.kron(A[i], B[i]) for i in range(3))
    torch.testing.assert_close(kronecker_sum(A, B), expected)
    model, _ = moved("bert", trimtab.Compacter(width=8, rank=2))
    adapter = model._trimtab.adapter("default")  # type: ignore[union-attr]
    assert [key for key in adapter.tensors() if key.endswith(".A")] == ["shared.compacter.A"]
    first, second = (delta.values(torch.float32) for _, delta in list(adapter.deltas())[:2])
    assert first.A.data_ptr() == second.A.data_ptr()
    with pytest.raises(trimtab.SiteNotFound, match="multiples of n=4"):
        trimtab.attach(model, trimtab.Compacter(width=6), name="other")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("shared_slow", [True, False])
def test_compacter_by_hand(rank: int, shared_slow: bool) -> None:
    """Section 3: D and U as sums of Kronecker products; a PHM-adapter shares nothing, and its fast
    weights are whole."""
    method = trimtab.Compacter(width=8, n=2, rank=rank, shared_slow=shared_slow)
    model, batch = moved("bert", method)
    adapter = model._trimtab.adapter("default")  # type: ignore[union-attr]
    assert ("shared.compacter.A" in adapter.tensors()) is shared_slow
    host = hosted(model)[0]
    seen: dict[str, Tensor] = {}
    host.register_forward_hook(lambda m, a, y: seen.update(x=a[0], y=y))
    cases.logits(model, batch)
    p = host.stack("default")["compacter"].values(torch.float32)

    def phm(name: str, out: int, inner: int) -> Tensor:
        slow = p.A if shared_slow else p.tensors[f"{name}A"]
        fast = p.tensors[f"{name}s"] @ p.tensors[f"{name}t"].mT if rank else p.tensors[f"{name}B"]
        assert slow.shape == (2, 2, 2)
        assert fast.shape == (2, out // 2, inner // 2)
        return torch.kron(slow[0], fast[0]) + torch.kron(slow[1], fast[1])

    h = host.base(seen["x"])
    inside = F.gelu(F.linear(h, phm("D", 8, 32), p.d))
    torch.testing.assert_close(seen["y"], h + F.linear(inside, phm("U", 32, 8), p.u))


def test_conditional_acts_by_task() -> None:
    model, batch = moved("bert", trimtab.Conditional(tasks=3, width=4))
    mixed = cases.logits(model, {**batch, "task_ids": torch.tensor([2, 0])})
    for row, task in enumerate([2, 0]):
        one = {key: tensor[[row]] for key, tensor in batch.items()}
        with trimtab.given(model, task_ids=[task]):
            torch.testing.assert_close(mixed[[row]], cases.logits(model, one))
    cases.assert_differs(mixed, cases.logits(model, {**batch, "task_ids": torch.tensor([1, 1])}))
    with pytest.raises(trimtab.InputError, match="needs a task for each example"):
        cases.logits(model, batch)
    with pytest.raises(trimtab.InputError, match="task_ids must lie in 0 … 2"):
        cases.logits(model, {**batch, "task_ids": torch.tensor([3, 0])})


@architectures
def test_conditional_starts_at_the_base_for_every_task_and_trains_all(name: str) -> None:
    model, batch = cases.by_name(name).model(), cases.by_name(name).batch()
    before = cases.logits(model, batch)
    adapter = trimtab.attach(model, trimtab.Conditional(tasks=2, width=4))
    with trimtab.given(model, task_ids=[0, 1]):
        torch.testing.assert_close(cases.logits(model, batch), before)
        cases.perturb(adapter)
        cases.loss(model, batch).backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
