"""Whether a run's frozen maps multiply in eight bits while it trains: by measurement of the time of
a step, and of what it does to the step's gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.kernels import coded
from trimtab.tune import hardware
from trimtab.tune.session import Session, loss

Batch = Mapping[str, Tensor]
_GAIN = 1.1  # how much faster a step must be
_AGREEING = 0.99  # the cosine of its gradient with the exact one, at least


def choose(session: Session, adapter: Adapter, batch: Batch) -> None:
    """Pin the faster of the two, where their gradients agree; from now on the model computes so.

    Raises:
        InputError: eight bits are asked for where they are not to be had.
    """
    config = session.config
    if config.products == "exact":
        return
    count = 0 if config.selects or config.method == "head" else coded.int8(session.model)
    if not count:
        if config.products == "int8":
            raise InputError(f"--products int8: {_why(session)}; leave it out, or take exact")
        config.products = "exact"
        return
    found = gradient(session, adapter, batch)  # of the codes, which this batch balances
    if config.products == "int8":
        return
    with coded.exact(session.model):
        agreement = coded.agreement(found, gradient(session, adapter, batch))

    def step() -> None:
        gradient(session, adapter, batch)

    def exactly() -> None:
        with coded.exact(session.model):
            step()

    took = hardware.measure({"exact": exactly, "int8": step}, rounds=3)
    better = took["int8"] * _GAIN < took["exact"] and agreement >= _AGREEING
    config.products = "int8" if better else "exact"
    if not better:
        coded.int8(session.model, on=False)
    more = {"products_ms": took, "int8_agreement": round(agreement, 5)}
    config.measured = {**config.measured, **more}


def _why(session: Session) -> str:
    if session.config.selects or session.config.method == "head":
        return f"{session.config.method} has no frozen maps to train through"
    if not coded.here():
        return "the compiled kernels, or the processor's instructions for them, are not here"
    return f"the model has no frozen linear maps in {session.config.dtype} that are large enough"


def gradient(session: Session, adapter: Adapter, batch: Batch) -> dict[str, Tensor]:
    """Of what trains, on this batch; random numbers, if there are any, are the same each time."""
    model: nn.Module = session.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss(session)(model.train(), batch).backward()  # type: ignore[no-untyped-call]
    found = {
        str(index): parameter.grad
        for index, parameter in enumerate(adapter.parameters())
        if parameter.grad is not None
    }
    for parameter in adapter.parameters():
        parameter.grad = None
    return found
