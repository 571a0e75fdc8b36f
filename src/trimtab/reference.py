"""A model under other adapters for a while: the reference of preference learning, for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trimtab.core.adapter import record
from trimtab.core.compose import Composition
from trimtab.core.host import Host
from trimtab.core.walk import walk
from trimtab.together import composed

_READ = ("config", "device", "dtype")
"""What trainers ask of a reference beside calling it."""


@contextlib.contextmanager
def using(model: nn.Module, composition: Composition | None) -> Iterator[None]:
    """Let these adapters act within a block, and then those that were active before.

    Unlike `activate` it changes nothing about what trains, and may stand between a forward pass and
    its backward pass: a step can ask the base alone (None) for its opinion. A backward pass cannot
    cross the block's borders.

    Raises:
        StateError: the model is merged; what is attached or active is changed within the block.
    """
    record_ = record(model)
    names = composed(model, composition)
    moved = [
        adapter
        for adapter in record_.adapters.values()
        if adapter.selection is not None and adapter.in_place != (adapter.name in names)
    ]
    with record_.switch.instead(composition):
        for adapter in moved:
            adapter.exchange()
        try:
            yield
        finally:
            for adapter in moved:
                adapter.exchange()


class Reference(nn.Module):
    """The same model under other adapters (None: the base alone) as a module of its own, for
    trainers that take a reference model. It holds no weights, never trains and has no dropout.
    """

    def __init__(self, model: nn.Module, composition: Composition | None = None) -> None:
        super().__init__()
        composed(model, composition)
        self.__dict__["adapted"] = model  # beside the module tree: its parameters are not ours
        self.composition = composition

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call: what a trainer has put around its forward acts here too."""
        with using(self.adapted, self.composition), _evaluating(self.adapted):
            return self.adapted(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapted, name) if name in _READ else super().__getattr__(name)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The base and what acts on it in evaluation mode, and then in their own again."""
    base = [module for _, module in walk(model)]
    inside = [module.base for module in base if isinstance(module, Host)]
    acting = [delta for adapter in record(model).acting() for delta in adapter.members]
    modules = [*base, *inside, *acting]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
