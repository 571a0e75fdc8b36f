"""A dense change is made again in the backward pass: the same gradients, and nothing kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import trimtab
from trimtab.core.method import Method
from trimtab.core.operator import linear
from trimtab.core.recompute import product

WIDTH = 64
METHODS = [
    trimtab.FourierFT(n_frequency=50),
    trimtab.SHiRA(rank=2),
    trimtab.Fish(density=0.01, mask="random"),
]


@contextlib.contextmanager
def keeping() -> Iterator[list[int]]:
    """The sizes of what is kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def attached(method: Method) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    for parameter in trimtab.attach(model, method, "0").parameters():
        parameter.data.normal_()
    return model


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_no_dense_change_is_kept(method: Method, autocast: bool) -> None:
    model, x = attached(method), torch.randn(2, 3, WIDTH)
    frozen = model[0].base.weight.data
    with keeping() as sizes, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x.requires_grad_())
    frozen_kept = 1  # the base's own product keeps its weight, which is there anyway
    assert sum(size >= frozen.numel() for size in sizes) <= frozen_kept
    y.float().square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".deltas." in n)


def law(values: Tensor) -> Tensor:
    return torch.fft.ifft2(values).real


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
def test_the_gradients_are_those_of_the_plain_product(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(product(x, lambda: law(values)), linear(x, law(values)))
    torch.autograd.gradcheck(lambda x, v: product(x, lambda: law(v)), (x, values))
    torch.autograd.gradgradcheck(lambda x, v: product(x, lambda: law(v)), (x, values))


def test_embeddings_and_transforms_of_functions() -> None:
    values, ids = torch.randn(4, 5), torch.tensor([[0, 4], [2, 2]])

    def loss(values: Tensor) -> Tensor:
        return product(ids, lambda: law(values)).square().sum()

    by_function = torch.func.grad(loss)(values)
    values.requires_grad_()
    loss(values).backward()
    torch.testing.assert_close(values.grad, by_function)
