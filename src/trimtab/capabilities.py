"""What each method can do, found by trying it: the table of `trimtab methods`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.adapt import activate, attach, detach, merge
from trimtab.core.counts import summary
from trimtab.core.errors import TrimtabError
from trimtab.core.method import Method, Selection
from trimtab.core.registry import methods
from trimtab.core.site import geometry
from trimtab.core.training import parameters

STANDARD = 768  # the width of the site at which parameters are counted


class _Transposed(nn.Module):
    """A linear map that stores (in, out), as transformers' Conv1D does."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.nf = out
        self.weight, self.bias = nn.Parameter(torch.randn(inp, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


_Transposed.__name__ = "Conv1D"

KINDS: dict[str, Callable[[int], nn.Module]] = {
    "Linear": lambda n: nn.Linear(n, n),
    "Conv1D": lambda n: _Transposed(n, n),
    "LayerNorm": lambda n: nn.LayerNorm(n),
    "Embedding": lambda n: nn.Embedding(n, n),
}


def table() -> dict[str, dict[str, Any]]:
    """Every registered method: what it acts on, whether it merges and stacks, files, cost."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: _row(cls()) for name, cls in methods().items()}


def _row(method: Method) -> dict[str, Any]:
    selects = isinstance(method, Selection)
    layers = [
        kind for kind in KINDS if not selects and _works(method, kind, lambda model, x, y: True)
    ]
    first = layers[0] if layers else None
    return {
        "paper": method.paper or None,
        "targets": list(method.targets),
        "layers": layers,
        "mergeable": selects or (first is not None and _works(method, first, _merges)),
        "stackable": first is not None and _works(method, first, _stacks(method)),
        "hf_peft": method.hf.peft_type if method.hf else None,
        "parameters": _count(method, first) if first else None,
        "learning_rate": method.learning_rate,
        "options": {field.name: field.default for field in dataclasses.fields(method)},
    }


def _works(method: Method, kind: str, holds: Callable[[nn.Module, Tensor, Tensor], bool]) -> bool:
    """Whether the method attaches to such a layer, changes its output, and the law holds there."""
    width = 16
    model = nn.Sequential(KINDS[kind](width))
    x = torch.arange(width)[None] if kind == "Embedding" else torch.randn(3, width)
    try:
        attach(model, method, to="0", name="probe")
        with torch.no_grad():
            before = model(x)
            for parameter in parameters(model):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            y = model(x)
            return not torch.equal(before, y) and holds(model, x, y)
    except (TrimtabError, RuntimeError, NotImplementedError):
        return False


def _merges(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    return torch.allclose(merge(model)(x), y, atol=1e-4)


def _stacks(method: Method) -> Callable[[nn.Module, Tensor, Tensor], bool]:
    def holds(model: nn.Module, x: Tensor, y: Tensor) -> bool:
        from trimtab.core.compose import Stack

        attach(model, method, to="0", name="second")
        activate(model, Stack("probe", "second"))
        stacked = torch.allclose(model(x), y, atol=1e-4)
        detach(model, "second")
        activate(model, "probe")
        return stacked and torch.equal(model(x), y)

    return holds


def _count(method: Method, kind: str) -> int:
    model = nn.Sequential(KINDS[kind](STANDARD))
    assert geometry(model[0]).kind != "other"
    attach(model, method, to="0")
    return summary(model).trainable
