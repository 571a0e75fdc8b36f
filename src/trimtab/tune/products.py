"""Whether a run's frozen maps multiply in eight bits while it trains: by measurement of the time of
a step, and of what it does to the step's gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trimtab.core import kernel
from trimtab.core.adapter import Adapter
from trimtab.core.errors import InputError
from trimtab.kernels import coded
from trimtab.tune import hardware
from trimtab.tune.choices import loss
from trimtab.tune.config import Config
from trimtab.tune.session import Session

Batch = Mapping[str, Tensor]
_GAIN = 1.1  # how much faster a step must be
_AGREEING = 0.99  # the cosine of its gradient with the exact one, at least


def refuse(config: Config) -> None:
    """Eight bits that are asked for where they are not to be had."""
    if config.products != "int8" or _measured(config):
        return
    why = None
    if config.selects:
        why = f"--method {config.method} has no frozen maps to train through"
    elif not kernel.enabled():
        why = "TRIMTAB_KERNELS is off"
    elif not _here():
        why = "the compiled kernels, or the processor's instructions for them, are not here"
    if why:
        raise InputError(
            f"--products int8: {why}; take exact, or go on with a run that was begun so where it "
            "began"
        )


def choose(session: Session, adapter: Adapter, batch: Batch, other: Batch) -> None:
    """Pin the faster of the two, where their gradients agree on a batch other than the one that
    balances the codes; from now on the model computes so.

    Raises:
        InputError: eight bits are asked for, of a model that has nothing for them.
    """
    config = session.config
    if config.products == "int8" and _measured(config) and not _here():
        config.products = "exact"
        session.notes.append(
            "this run multiplied in eight bits, by measurement, for which the kernels are not "
            "here: it goes on with exact products"
        )
    if config.products == "exact":
        return
    count = coded.int8(session.model) if _here() and not config.selects else 0
    if not count and config.products == "int8":
        raise InputError(
            f"--products int8: the model has no frozen linear maps in {config.dtype} that are "
            "large enough; leave it out, or take exact"
        )
    if not count:
        config.products = "exact"
        return
    with session.phases.doing("trying products in eight bits"):
        gradient(session, adapter, batch)  # which balances the codes
        if not _measured(config):
            _try(session, adapter, batch, other)


def _try(session: Session, adapter: Adapter, batch: Batch, other: Batch) -> None:
    config, model = session.config, session.model
    found = gradient(session, adapter, other)
    with coded.exact(model):
        agreement = round(coded.agreement(found, gradient(session, adapter, other)), 5)
    took = _seconds(session, adapter, batch) if config.products == "auto" else None
    if took is not None:
        better = took["int8"] * _GAIN < took["exact"] and agreement >= _AGREEING
        config.products = "int8" if better else "exact"
        config.measured = {**config.measured, "products_ms": took}
    config.measured = {**config.measured, "int8_agreement": agreement}
    if config.products == "exact":
        coded.int8(model, on=False)
    elif took is not None or agreement < _AGREEING:
        gain = "a step took {int8:.0f} ms for {exact:.0f}, ".format(**took) if took else ""
        session.notes.append(
            f"frozen maps multiply in eight bits while training: {gain}the gradient's cosine with "
            f"the exact one is {agreement:.4f}"
        )


def _seconds(session: Session, adapter: Adapter, batch: Batch) -> dict[str, float]:
    def step() -> None:
        gradient(session, adapter, batch)

    def exactly() -> None:
        with coded.exact(session.model):
            step()

    return hardware.measure({"exact": exactly, "int8": step}, rounds=3)


def _measured(config: Config) -> bool:
    """Whether this run was not told, but has found what is faster."""
    return "products_ms" in config.measured


def _here() -> bool:
    return hardware.device().type == "cpu" and coded.here()


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
