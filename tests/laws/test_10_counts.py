"""Law 10: an adapter has as many parameters as its paper's formula says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import suite
from formulas import FORMULAS
from torch import nn

import trimtab
from trimtab.core.method import Method
from trimtab.testing import ARCHITECTURES, check_method


@suite.held(10)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


def test_every_method_has_its_formula() -> None:
    assert {method.name for method in cases.SITED} == set(FORMULAS)


@pytest.mark.parametrize("method", cases.SITED, ids=lambda method: method.name)
def test_counts_are_the_formulas(method: Method) -> None:
    report = check_method(method, ARCHITECTURES, laws=["counts"], parameters=FORMULAS[method.name])
    report.raise_if_broken()
    assert report.of("holds")


HIDDEN, WIDE, LAYERS, HEAD = 32, 64, 2, 3


def _all(model: nn.Module) -> int:
    return sum({id(p): p.numel() for p in model.parameters()}.values())


# Written from the papers and the architectures' shapes, not from the code under test.
FIGURES: dict[str, dict[str, Callable[[int], int]]] = {
    "lora": {  # r (in + out) at every linear map but the head
        "bert": lambda _: 8 * (LAYERS * (4 * (32 + 32) + 2 * (32 + 64)) + (32 + 32)),
        "gpt2": lambda _: 8 * LAYERS * ((32 + 96) + (32 + 32) + 2 * (32 + 128)),
        "llama": lambda _: 8 * LAYERS * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)),
        "t5": lambda _: 8 * LAYERS * (3 * 4 * (32 + 32) + 2 * 2 * (32 + 64)),
    },
    "ia3": {  # d_k + d_v + d_ff in a layer
        "bert": lambda _: LAYERS * (HIDDEN + HIDDEN + WIDE),
        "gpt2": lambda _: LAYERS * (3 * HIDDEN + 4 * HIDDEN),  # q, k and v are one map
        "llama": lambda _: LAYERS * (HIDDEN // 2 + HIDDEN // 2 + WIDE),  # two key heads of four
        "t5": lambda _: LAYERS * (3 * 2 * HIDDEN + 2 * WIDE),
    },
    "bitfit": {  # every bias but the head's
        "bert": lambda _: LAYERS * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32,
        "gpt2": lambda _: LAYERS * (96 + 32 + 128 + 32 + 2 * 32) + 32,
    },
    "full": dict.fromkeys(("bert", "gpt2", "llama", "t5"), lambda total: total),
    "head": {
        "bert": lambda _: HIDDEN * HEAD + HEAD,
        "llama": lambda _: HIDDEN * cases.VOCAB,
    },
}


@cases.pairs()
def test_written_down_for_four(method: Method, architecture: cases.Architecture) -> None:
    if architecture.name not in FIGURES.get(method.name, {}):
        pytest.skip(f"no figure is written down for {method.name} on {architecture.name}")
    model = architecture.model()
    total = _all(model)
    adapter = trimtab.attach(model, method)
    count = sum(parameter.numel() for parameter in adapter.parameters())
    assert count == FIGURES[method.name][architecture.name](total)
    report = trimtab.summary(model)
    assert report.trainable == count == sum(report.sites.values())
    assert report.total == total
    assert report.bytes == 4 * count


@pytest.mark.parametrize("rank", [1, 5])
def test_lora_grows_with_its_rank(rank: int) -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4))
    trimtab.attach(model, trimtab.LoRA(rank=rank), "0")
    assert trimtab.summary(model).trainable == rank * (6 + 10)
    assert f"{rank * 16} parameters" in str(trimtab.summary(model))


def test_controls() -> None:
    """A formula that is off by one site, and a method whose fixed tensors train."""
    report = check_method(
        trimtab.LoRA(),
        [cases.by_name("bert")],
        laws=["counts"],
        parameters=lambda sites: FORMULAS["lora"](sites[1:]),
    )
    assert "the formula says" in report.broken[0].why
    report = check_method(
        trimtab.LoRA(rank=9),
        [cases.by_name("bert")],
        laws=["counts"],
        parameters=FORMULAS["lora"],
    )
    assert "the formula says" in report.broken[0].why
