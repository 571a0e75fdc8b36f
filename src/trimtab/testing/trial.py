"""What a law works with: one method, one architecture's model, one batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import LoRA
from trimtab.adapt import activate, attach
from trimtab.core.adapter import Adapter, carries
from trimtab.core.call import given
from trimtab.core.errors import InputError
from trimtab.core.method import Method
from trimtab.testing.architectures import Architecture

PARTS = ("part-a", "part-b")


class NotApplicable(Exception):
    """The law has nothing to say of this method; the reason is the message."""


class NotHere(NotApplicable):
    """The law has nothing to say on this architecture; another one may tell."""


class Trial:
    """A method on a fresh copy of an architecture's model.

    A method that acts over other adapters (`needs` has "over") finds two of LoRA there; one that
    asks for tasks gets the first one for every example.
    """

    def __init__(
        self, method: Method, architecture: Architecture, dtype: torch.dtype = torch.float32
    ) -> None:
        self.method, self.architecture = method, architecture
        self.model: Any = architecture.model().to(dtype)
        self.batch = architecture.batch()
        self.dtype = dtype
        if "over" in getattr(method, "needs", ()):
            for seed, name in enumerate(PARTS):
                with torch.random.fork_rng(devices=[]):  # the same parts on every copy
                    torch.manual_seed(seed)
                    part = attach(self.model, LoRA(rank=2), name=name)
                perturb(part, seed=seed + 10)
            activate(self.model, None)
            self.method = dataclasses.replace(method, over=PARTS)  # type: ignore[call-arg]

    def attach(self, name: str = "default") -> Adapter:
        """The method as a new adapter; `NotHere` with the reason where it cannot act."""
        before = self.model.state_dict().keys()
        try:
            return attach(self.model, self.method, name=name)
        except InputError as error:
            ensure(str(error), "it is refused without a reason")
            ensure(self.model.state_dict().keys() == before, "it is refused, and something is left")
            raise NotHere(str(error)) from None

    def perturbed(self, name: str = "default", seed: int = 1) -> Adapter:
        """The method as a new adapter that has learnt something."""
        adapter = self.attach(name)
        perturb(adapter, seed)
        return adapter

    def outputs(self, model: nn.Module | None = None) -> Tensor:
        """What the model computes now."""
        model = self.model if model is None else model
        with self.facts(model):
            return self.architecture.outputs(model, self._cast(model))

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """The loss of the batch, with its graph."""
        model = self.model if model is None else model
        with self.facts(model):
            return self.architecture.loss(model, self._cast(model))

    def read(self, model: nn.Module) -> Tensor:
        """What the model computes, with its graph."""
        with self.facts(model):
            return self.architecture.read(model, self._cast(model))

    def _cast(self, model: nn.Module) -> dict[str, Any]:
        return {
            key: value.to(self.dtype) if _floats(value) else value
            for key, value in self.batch.items()
        }

    @contextlib.contextmanager
    def facts(self, model: nn.Module) -> Iterator[None]:
        """The facts of a call that the method cannot do without."""
        if "task_ids" in getattr(self.method, "needs", ()) and carries(model):
            count = next(len(value) for value in self.batch.values() if isinstance(value, Tensor))
            with given(model, task_ids=torch.zeros(count, dtype=torch.long)):
                yield
        else:
            yield


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def ensure(holds: object, message: str) -> None:
    """An assertion that stays where Python is run without them (`python -O`)."""
    if not holds:
        raise AssertionError(message)


def perturb(adapter: Adapter, seed: int = 1, by: float = 0.1) -> None:
    """Move every trained parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((by * noise).to(parameter.dtype))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients that are there, by parameter."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    """The same keys in the same order, and the same bits."""
    after = model.state_dict()
    ensure(list(after) == list(before), "the model's state has other keys than before")
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    ensure(changed == [], f"the values of {changed} are not what they were")


def assert_same(a: Tensor, b: Tensor, what: str) -> None:
    """The same bits."""
    if not torch.equal(a, b):
        off = (a.double() - b.double()).abs().max().item() if a.shape == b.shape else "the shape"
        raise AssertionError(f"{what}: not bit for bit the same, off by {off}")


def assert_near(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance`, of the largest value where that is above one."""
    ensure(a.shape == b.shape, f"{what}: the shape is {tuple(a.shape)}, not {tuple(b.shape)}")
    ensure(a.isfinite().all(), f"{what}: not finite")
    off = (a.detach().double() - b.detach().double()).abs().max().item() if a.numel() else 0.0
    largest = max(1.0, b.abs().max().item() if b.numel() else 0.0)
    ensure(off <= tolerance * largest, f"{what}: off by {off:.2g}, at a size of {largest:.2g}")


def assert_differs(a: Tensor, b: Tensor, what: str) -> None:
    """Further apart than rounding explains."""
    ensure((a.double() - b.double()).abs().max() > 1e-3, f"{what}: nothing differs")
