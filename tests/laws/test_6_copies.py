"""Law 6: copies, pickles, compiles; autocast, bf16; gradient checkpointing of both kinds."""

from __future__ import annotations

from typing import Any, ClassVar

import cases
import pytest
import suite
import torch
from broken import Drifting
from torch import Tensor

import trimtab
from trimtab.core.method import Method, Values


@suite.held(6)
def test_holds(method: Method, law: Any, where: Any) -> None:
    suite.check(method, law, where)


@cases.rotation(cases.AFFINE)
def test_small_steps_move_a_bf16_model(method: Method, architecture: cases.Architecture) -> None:
    """A factor of 1.003 is one in bf16; used in its own precision it is felt."""
    if stepped(method, architecture, torch.float32) < 0.005:
        pytest.skip("from the paper's start such a step is of second order")
    assert stepped(method, architecture, torch.bfloat16) > 0


def stepped(method: Method, architecture: cases.Architecture, dtype: torch.dtype) -> float:
    """How far the outputs move when every parameter does by 0.003."""
    torch.manual_seed(0)
    model, batch = architecture.model().to(dtype), architecture.batch()
    adapter = cases.attach(model, method)
    before = cases.logits(model, batch)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.003)
    return float((cases.logits(model, batch) - before).abs().max())


class Clinging(trimtab.LoRA):
    """It keeps the first parameters of each shape that it has seen."""

    seen: ClassVar[dict[Any, Tensor]] = {}

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        A = self.seen.setdefault(p.A.shape, p.A)
        return self.scale * (x @ A.T @ p.B.T)


def test_control_of_copies() -> None:
    suite.breaks(Clinging(), "copy", "training the copy reaches the model")


def test_control_of_pickles() -> None:
    class Local(trimtab.LoRA):
        """No module knows it by name."""

    suite.breaks(Local(), "pickle", "Local")


class Breaking(trimtab.LoRA):
    """The compiler cannot follow it."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().matvec(p, x)


def test_control_of_compiling() -> None:
    suite.breaks(Breaking(), "compile", "the graph breaks")


class Coarse(trimtab.LoRA):
    """In low precision it is another method."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return super().matvec(p, x) * (20 if low else 1)


class Rounding(trimtab.LoRA):
    """It rounds what it has learnt as it runs."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        p.A.data.copy_(p.A.detach().to(torch.bfloat16))
        return super().matvec(p, x)


def test_controls_of_precision() -> None:
    suite.breaks(Coarse(), "autocast", "off by")
    suite.breaks(Coarse(), "bf16", "off by")
    suite.breaks(Rounding(), "move", "were rounded by a move")


class Idle(trimtab.LoRA):
    """It acts only where gradients are asked for."""

    def matvec(self, p: Values, x: Tensor) -> Tensor:
        return super().matvec(p, x) * torch.is_grad_enabled()


def test_controls_of_checkpointing() -> None:
    suite.breaks(Drifting(), "checkpointing", "checkpointed")
    suite.breaks(Drifting(), "re-entrant", "checkpointed")
    suite.breaks(Idle(), "re-entrant", "checkpointed", on="gpt2")
