"""Products with frozen matrices in eight bits: what they say they are, near the exact ones, in
training alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.method import Method, Selection
from trimtab.kernels import coded, cpu
from trimtab.kernels.coded import Codes, Int8Linear, outer, times
from trimtab.kernels.cross_entropy import Int8CrossEntropy

pytestmark = pytest.mark.skipif(not coded.here(), reason="no compiled kernels, or no AVX-512 VNNI")

GROUP = 128
SHAPES = [(50, 384, 384), (37, 100, 70), (7, 6, 5), (1, 1536, 64), (200, 130, 129)]
DTYPES = (torch.float32, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def rounded(x: Tensor) -> Tensor:
    """x as codes with a scale for each row and 128 columns stand for it."""
    parts = []
    for part in x.float().split(GROUP, -1):
        scale = part.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, -1)


def rounded_rows(W: Tensor) -> Tensor:
    scale = W.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (W / scale).round() * scale


def near(one: Tensor, other: Tensor, by: float) -> None:
    assert (one.float() - other.float()).norm() <= by * other.float().norm()


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "plain"])
def test_a_product_is_that_of_the_codes(
    shape: tuple[int, int, int], balanced: bool, dtype: torch.dtype
) -> None:
    """Against the same codes in torch; only ties of a rounding may fall otherwise."""
    rows, columns, outputs = shape
    x, W = torch.randn(rows, columns).to(dtype), torch.randn(outputs, columns)
    bias, m = torch.randn(outputs), torch.rand(columns) + 0.5 if balanced else torch.ones(columns)
    y, _ = times(x, Codes.of(W, m if balanced else None), bias)
    assert y.dtype == dtype
    expected = linear(rounded(x.float() / m), rounded_rows(W * m), bias)
    near(y, expected, 2e-3 if dtype == torch.float32 else 5e-3)
    near(y, linear(x.float(), W, bias), 0.03)


@each_dtype
@pytest.mark.parametrize("rank", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_low_rank_part_is_exact(
    shape: tuple[int, int, int], rank: int, dtype: torch.dtype
) -> None:
    rows, columns, outputs = shape
    x, codes = torch.randn(rows, columns).to(dtype), Codes.of(torch.zeros(outputs, columns))
    A, B = torch.randn(rank, columns), torch.randn(rank, outputs)
    y, down = times(x, codes, None, (A, B, 0.5))
    by = 1e-5 if dtype == torch.float32 else 1e-2
    A, B = (one.to(dtype).float() for one in (A, B))  # as x is
    near(y, 0.5 * (x.float() @ A.T) @ B, by)
    assert down is not None
    near(down[:, :rank], x.float() @ A.T, by)
    assert not down[:, rank:].any()
    near(outer(down, x, 2.0)[:rank], 2 * down[:, :rank].T @ x.float(), by)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_lost(odd: float) -> None:
    x = torch.randn(9, 300)
    x[4, 200] = odd
    y, _ = times(x, Codes.of(torch.randn(64, 300)))
    assert not y[4].isfinite().any()
    assert y[[*range(4), *range(5, 9)]].isfinite().all()


def adapted(dtype: torch.dtype = torch.bfloat16, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 128)).to(dtype)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=3, **options), "all-linear"), by=0.1)
    return model.train()


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradients of x and of what trains."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    found = torch.autograd.grad((y * weights).sum(), [x, *trimtab.parameters(model)])
    return [y.detach(), *found]


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows with every product of codes."""
    return follow(Int8Linear, "apply")


@each_dtype
def test_lora_trains_as_with_the_exact_product(dtype: torch.dtype, calls: list[Any]) -> None:
    model, x = adapted(dtype), torch.randn(4, 30, 192).to(dtype)
    exact = run(model, x)
    assert trimtab.kernels.int8(model) == 2
    assert not calls
    found = run(model, x)
    assert len(calls) == 2
    assert [one.dtype for one in found] == [one.dtype for one in exact]
    for one, other in zip(found, exact, strict=True):
        near(one, other, 0.03)


OFF: dict[str, Callable[[nn.Module], Any]] = {
    "in evaluation": lambda model: model.eval(),
    "within exact()": lambda model: coded.exact(model),
    "with kernels off": lambda model: trimtab.kernels.disabled(),
    "taken back": lambda model: trimtab.kernels.int8(model, on=False),
    "in another precision": lambda model: model.double(),
    "trained itself": lambda model: model.requires_grad_(True),
}


@pytest.mark.parametrize("how", OFF)
def test_elsewhere_it_is_the_exact_product(how: str, calls: list[Any]) -> None:
    model, x = adapted(torch.float32), torch.randn(40, 192)
    trimtab.kernels.int8(model)
    twin = adapted(torch.float32)
    around = OFF[how](model)
    if how in ("in another precision", "trained itself"):
        OFF[how](twin)
    x = x.to(next(model.parameters()).dtype)
    with around if hasattr(around, "__enter__") else torch.enable_grad():
        found = run(model, x)
    assert not calls
    for one, other in zip(found, run(twin, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_codes_follow_their_matrix() -> None:
    """Merged, unmerged or loaded anew: what is multiplied is what the module holds."""
    model, x = adapted(torch.float32), torch.randn(40, 192)
    trimtab.kernels.int8(model)
    before = model(x)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(-2)
    near(model(x), model.eval()(x), 0.03)
    assert (model.train()(x) - before).norm() > 0.5 * before.norm()
    trimtab.merge(model)
    near(model(x), model.eval()(x), 0.03)
    trimtab.unmerge(model.train())
    near(model(x), model.eval()(x), 0.03)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_so_and_stands_alone(copied: Any, calls: list[Any]) -> None:
    model, x = adapted(torch.float32), torch.randn(40, 192)
    trimtab.kernels.int8(model)
    model(x)
    twin = copied(model)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-3, atol=1e-3)
    assert len(calls) == 6
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    near(twin(x), twin.eval()(x), 0.03)


def test_a_second_derivative_is_that_of_the_exact_product() -> None:
    model, x = adapted(torch.float32), torch.randn(40, 192, requires_grad=True)

    def twice() -> list[Tensor]:
        first = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        return list(torch.autograd.grad(first.square().sum(), [x, *trimtab.parameters(model)]))

    exact = twice()
    trimtab.kernels.int8(model)
    for one, other in zip(twice(), exact, strict=True):
        near(one, other, 0.1)


def test_state_and_names_stay() -> None:
    model = adapted()
    names, state = (
        dict(model.named_modules()),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    trimtab.kernels.int8(model)
    model(torch.randn(40, 192).bfloat16())
    assert dict(model.named_modules()) == names
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in state.items()
    }


def decoder() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("method", cases.FREE, ids=lambda method: method.name)
def test_every_method_trains_through_them(method: Method) -> None:
    """Whatever a law makes of a frozen map, its gradient stays what it is."""
    model = decoder()
    try:
        adapter = cases.attach(model, method)
    except InputError as error:
        pytest.skip(str(error))
    cases.perturb(adapter, by=0.05)
    ids = torch.randint(1100, (3, 20))
    model.train()

    def gradient() -> dict[str, Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        cases.loss(model, {"input_ids": ids, "labels": ids}).backward()
        own = enumerate(adapter.parameters())
        return {str(i): one.grad.clone() for i, one in own if one.grad is not None}

    exact = gradient()
    coded_maps = trimtab.kernels.int8(model)
    assert coded_maps or isinstance(method, Selection)
    found = gradient()
    assert found.keys() == exact.keys()
    assert coded.agreement(found, exact) > 0.99


@each_dtype
@pytest.mark.parametrize("words", [1000, 1024, 2050])
def test_the_loss_of_a_head_is_near_the_exact_one(words: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.Linear(96, words, bias=words % 2 == 0).to(dtype).requires_grad_(False).train()
    h = (2 * torch.randn(101, 96)).to(dtype).requires_grad_()
    labels = torch.randint(words, (101,))
    own = coded.Coded(head)

    losses = Int8CrossEntropy.apply(h, own, labels)
    found = torch.autograd.grad(losses.mean(), h)[0]
    z = linear(h.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    exact = cross_entropy(z, labels, reduction="none")
    expected = torch.autograd.grad(exact.mean(), h)[0]
    torch.testing.assert_close(losses, exact.detach(), rtol=0.02, atol=0.05)
    near(found, expected, 0.05)


def test_a_part_of_the_package_alone() -> None:
    """Without the compiled kernels nothing is coded, and nothing fails."""
    model = adapted()
    library = cpu.library
    try:
        cpu.has.cache_clear()
        cpu.library = lambda: None  # type: ignore[assignment]
        assert trimtab.kernels.int8(model) == 0
        run(model, torch.randn(40, 192).bfloat16())
    finally:
        cpu.library = library  # type: ignore[assignment]
        cpu.has.cache_clear()


@pytest.mark.parametrize("again", [True, False], ids=["re-entrant", "not re-entrant"])
def test_checkpointed_maps_are_computed_again_alike(again: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = adapted(), torch.randn(40, 192).bfloat16().requires_grad_()
    trimtab.kernels.int8(model)
    plain = run(model, x)
    of = trimtab.parameters(model)
    weights = torch.linspace(-1, 1, 40 * 128, dtype=torch.bfloat16).reshape(40, 128)
    for parameter in of:
        parameter.grad = None
    (checkpoint(model, x, use_reentrant=again) * weights).sum().backward()
    for parameter, expected in zip(of, plain[2:], strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_no_rows_no_trouble() -> None:
    model = adapted(torch.float32)
    trimtab.kernels.int8(model)
    assert model(torch.randn(0, 192)).shape == (0, 128)
    model(torch.randn(40, 192))
    assert model(torch.randn(0, 192)).shape == (0, 128)


def test_another_width_is_refused_as_ever() -> None:
    model = adapted(torch.float32)
    trimtab.kernels.int8(model)
    model(torch.randn(40, 192))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(40, 256))


def test_numbers_have_room_whatever_the_default_is() -> None:
    model, x = adapted(), torch.randn(40, 192).bfloat16()
    trimtab.kernels.int8(model)
    expected = run(model, x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = run(copy.deepcopy(model), x)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_column_that_was_silent_may_speak_up() -> None:
    """The first batch balances the codes; what it did not show must not ruin the others."""
    map_ = nn.Linear(256, 64).requires_grad_(False)
    own = coded.Coded(map_.train())
    first = torch.randn(40, 256)
    first[:, :5] = 0
    first[3, 9] = float("inf")
    own(first.requires_grad_())
    x = torch.randn(40, 256, requires_grad=True)
    near(own(x), map_.eval()(x), 0.03)


def test_a_bias_is_read_as_it_is() -> None:
    model, x = adapted(torch.float32), torch.randn(40, 192)
    trimtab.kernels.int8(model)
    model(x)
    with torch.no_grad():
        model.get_parameter("2.bias").add_(10)
    near(model(x), model.eval()(x), 0.03)


def test_another_parameter_has_other_codes() -> None:
    map_ = nn.Linear(192, 64, bias=False).requires_grad_(False).train()
    own, x = coded.Coded(map_), torch.randn(20, 192, requires_grad=True)
    for _ in range(4):  # the allocator likes to give the same place again
        map_.weight = nn.Parameter(torch.randn(64, 192), requires_grad=False)
        near(own(x), linear(x, map_.weight), 0.03)


def test_factors_may_lie_as_they_like() -> None:
    model, x = adapted(torch.float32), torch.randn(40, 192)
    trimtab.kernels.int8(model)
    expected = run(model, x)
    for parameter in trimtab.parameters(model):
        parameter.data = parameter.data.T.contiguous().T
    for one, other in zip(run(model, x), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sure_token_costs_nothing() -> None:
    """Probabilities are of the logits as they are kept: they add up to one."""
    torch.manual_seed(0)
    head = nn.Linear(96, 1100, bias=False).bfloat16().requires_grad_(False).train()
    labels = torch.randint(1100, (64,), dtype=torch.int32)
    h = (60 * head.weight[labels.long()]).detach().requires_grad_()
    losses = Int8CrossEntropy.apply(h, coded.Coded(head), labels.long())
    assert (losses >= 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), h)
    assert gradient.float().norm() < 0.01 * h.float().norm()


def test_a_model_is_not_kept_for_its_head() -> None:
    model = decoder()
    trimtab.attach(model, trimtab.LoRA(rank=2))
    trimtab.kernels.int8(model)
    ids = torch.randint(1100, (2, 9))
    model.train()(input_ids=ids, labels=ids.int().long()).loss.backward()
    held = weakref.ref(model.lm_head)
    del model
    gc.collect()
    assert held() is None


def test_fake_tensors_pass_by() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.Sequential(nn.Linear(192, 64)).requires_grad_(False).train()
    trimtab.kernels.int8(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.randn(5, 192)).shape == (5, 64)
