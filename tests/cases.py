"""What other tests run over: four of `trimtab.testing`'s architectures, and every method."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.core.adapter import Adapter
from trimtab.core.method import Method, Selection
from trimtab.testing import architectures, trial
from trimtab.testing.architectures import Architecture as Architecture
from trimtab.testing.architectures import tokens as tokens
from trimtab.testing.laws.merging import affine as affine
from trimtab.testing.trial import gradients as gradients
from trimtab.testing.trial import perturb as perturb
from trimtab.testing.trial import state as state

VOCAB, BERT = architectures.VOCAB, architectures.BERT
ARCHITECTURES = [
    one for one in architectures.ARCHITECTURES if one.name in ("bert", "gpt2", "llama", "t5")
]
METHODS: list[Method] = [
    trimtab.core.registry.build(name, {})
    for name, cls in trimtab.methods().items()
    if cls.__module__.startswith("trimtab.")  # and not one that a test has registered
]
SITED = [method for method in METHODS if not isinstance(method, Selection)]
AFFINE = [method.readied() for method in METHODS if affine(method) and not method.base]


FREE = [method.readied() for method in METHODS if not (method.needs or method.base)]
"""What needs facts of a call, other adapters or a quantised base is held to the laws alone."""


def by_name(name: str) -> Architecture:
    return next(one for one in architectures.ARCHITECTURES if one.name == name)


def pairs(
    methods: Iterable[Method] = FREE, architectures: Iterable[Architecture] = ARCHITECTURES
) -> pytest.MarkDecorator:
    """Every method on every architecture, as arguments `method` and `architecture`."""
    return _arguments([(one, other) for other in architectures for one in methods])


def rotation(methods: Iterable[Method] = FREE) -> pytest.MarkDecorator:
    """Each method on one architecture in turn, for what is slow."""
    return _arguments([(m, ARCHITECTURES[i % len(ARCHITECTURES)]) for i, m in enumerate(methods)])


def _arguments(product: list[tuple[Method, Architecture]]) -> pytest.MarkDecorator:
    ids = [f"{method.name}-{architecture.name}" for method, architecture in product]
    return pytest.mark.parametrize(("method", "architecture"), product, ids=ids)


def attach(model: nn.Module, method: Method, name: str = "default") -> Adapter:
    """Attach, or skip the test where the architecture has no site for the method."""
    try:
        return trimtab.attach(model, method, name=name)
    except trimtab.SiteNotFound as error:
        pytest.skip(str(error))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    trial.assert_same_state(model, before)


def assert_differs(a: Tensor, b: Tensor) -> None:
    trial.assert_differs(a, b, "outputs")
