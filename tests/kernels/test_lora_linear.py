"""The fused LoRA linear against the law that it accelerates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.kernels.lora import LoRALinear

Shape = Callable[[Tensor], Tensor]
SHAPES: dict[str, Shape] = {
    "2-D": lambda x: x.reshape(-1, 6),
    "3-D": lambda x: x,
    "4-D": lambda x: x[None],
    "vector": lambda x: x[0, 0],
    "strided": lambda x: x[:, -1:, :],
    "transposed": lambda x: x.transpose(0, 1),
    "expanded": lambda x: x[:1].expand(3, -1, -1),
    "empty": lambda x: x[:0],
}


@pytest.fixture
def calls(follow: Callable[[Any, str], list[Any]]) -> list[Any]:
    """Grows with every use of the kernel."""
    return follow(LoRALinear, "apply")


def adapted(bias: bool = True, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5, bias=bias)).to(dtype)
    cases.perturb(trimtab.attach(model, trimtab.LoRA(rank=3, **options), "0"), by=0.5)
    return model


def run(model: nn.Module, x: Tensor, shape: Shape, dx: bool) -> list[Tensor]:
    """The output, then the gradients of A, B and (where asked for) x."""
    x = x.detach().clone().requires_grad_(dx)
    model.zero_grad()
    y = model(shape(x))
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    found = [y.detach(), *(p.grad for p in trimtab.parameters(model))]
    return [*found, x.grad] if dx else found


@pytest.mark.parametrize("dx", [True, False], ids=["dx", "no-dx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_equals_the_law(shape: str, bias: bool, dx: bool, calls: list[Any]) -> None:
    model, x = adapted(bias), torch.randn(3, 4, 6)
    fused = run(model, x, SHAPES[shape], dx)
    assert len(calls) == 1
    with trimtab.kernels.disabled():
        law = run(model, x, SHAPES[shape], dx)
    assert len(calls) == 1
    for one, other in zip(fused, law, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["2-D", "3-D", "strided"])
def test_bf16_is_near_the_exact_law(shape: str, calls: list[Any]) -> None:
    """Nearer than 1e-3 in cosine to the law in double precision, masters and gradients in fp32."""
    model, x = adapted(dtype=torch.bfloat16), torch.randn(3, 4, 6).bfloat16()
    fused = run(model, x, SHAPES[shape], True)
    assert len(calls) == 1
    assert [t.dtype for t in fused] == [torch.bfloat16, torch.float32, torch.float32, x.dtype]
    with trimtab.kernels.disabled():
        exact = run(model.double(), x.double(), SHAPES[shape], True)
    for one, other in zip(fused, exact, strict=True):
        cosine = torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0)
        assert cosine > 0.999


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_gradcheck(bias: bool) -> None:
    x, A, B = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 6), (3, 6), (5, 3))
    )
    W, b = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def function(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return LoRALinear.apply(x, W, b if bias else None, A, B, 0.7)

    assert torch.autograd.gradcheck(function, (x, A, B))


class Doubled(nn.Linear):
    """A linear map with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def doubled(model: Any) -> Any:
    model[0].base.__class__ = Doubled
    return model


def patched(model: Any) -> Any:
    model[0].base.forward = lambda x: 2 * nn.functional.linear(x, model[0].weight, model[0].bias)
    return model


def hooked(model: Any) -> Any:
    model[0].base.register_forward_hook(lambda *args: 2 * args[2])
    return model


def hooked_before(model: Any) -> Any:
    model[0].base.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    return model


def trained(model: Any) -> Any:
    model[0].weight.requires_grad_(True)
    return model


def upon_another(model: Any) -> Any:
    cases.perturb(trimtab.attach(model, trimtab.IA3(), "0", name="second"))
    trimtab.activate(model, trimtab.Stack("second", "default"))
    return model


CHANGES = [doubled, patched, hooked, hooked_before, trained, upon_another]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_it_stands_back_where_the_base_is_not_plain(change: Any, calls: list[Any]) -> None:
    model, x = change(adapted()), torch.randn(3, 6)
    y = model(x)
    assert calls == []
    with trimtab.kernels.disabled():
        assert torch.equal(model(x), y)
    if change is trained:
        y.sum().backward()
        assert model[0].weight.grad is not None


def test_it_stands_back_under_autocast(calls: list[Any]) -> None:
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(3, 6)).dtype == torch.bfloat16
    assert calls == []


def test_it_stands_back_while_dropping_out(calls: list[Any]) -> None:
    model, x = adapted(dropout=0.5), torch.randn(3, 6)
    model.train()
    assert not torch.equal(model(x), model(x))
    assert calls == []
    model.eval()
    assert torch.equal(model(x), model(x))
    assert len(calls) == 2


def test_it_stands_back_when_disabled(calls: list[Any]) -> None:
    model = adapted()
    with trimtab.kernels.disabled():
        model(torch.randn(3, 6))
        with trimtab.kernels.disabled():
            pass
        model(torch.randn(3, 6))
    assert calls == []
    model(torch.randn(3, 6))
    assert len(calls) == 1


def test_another_law_under_the_same_name_is_not_its_own(calls: list[Any]) -> None:
    class Shifted(trimtab.LoRA):
        def matvec(self, p: Any, x: Tensor) -> Tensor:
            return super().matvec(p, x) + 1

    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 6)
    base = model(x)
    trimtab.attach(model, Shifted(), "0")
    torch.testing.assert_close(model(x), base + 1)
    assert calls == []


@pytest.mark.parametrize("architecture", cases.ARCHITECTURES, ids=lambda a: a.name)
def test_on_whole_models(architecture: cases.Architecture, calls: list[Any]) -> None:
    """Every plain linear site goes through it, once; GPT-2's transposed ones do not."""
    model, batch = architecture.model(), architecture.batch()
    adapter = trimtab.attach(model, trimtab.LoRA())
    cases.perturb(adapter)
    fused = cases.logits(model, batch)
    plain = [host for host in adapter.hosts.values() if type(host.base) is nn.Linear]
    assert len(calls) == len(plain)
    assert plain or architecture.name == "gpt2"
    cases.loss(model, batch).backward()
    gradients = {name: g.clone() for name, g in cases.gradients(model).items()}
    model.zero_grad()
    with trimtab.kernels.disabled():
        torch.testing.assert_close(cases.logits(model, batch), fused, rtol=1e-4, atol=1e-4)
        cases.loss(model, batch).backward()
    for name, gradient in cases.gradients(model).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-4, msg=name)
