"""What a model's sites are given and what the loss says of what they give, on a few batches.

One forward and backward a batch. The gradient is taken at outputs: a map's input and the gradient
at its output hold that of its weight, g ᵀ x, which nobody forms here; weights of the base, in
whatever format, need no gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.adapter import unwrap
from trimtab.core.errors import InputError
from trimtab.init.observe import Loss, evaluated, own_loss, scalar, several
from trimtab.plan.candidates import Candidate
from trimtab.plan.estimators import Estimator

Take = Callable[[Tensor, Tensor, Tensor], None]


def measure(
    model: nn.Module,
    found: Sequence[Candidate],
    batches: Iterable[Any],
    estimator: type[Estimator],
    *,
    loss: Loss | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """What each further rank of each candidate is worth, (ranks,), on these batches.

    The model is as it is: with adapters that are active, the gradient that they have left.

    Args:
        batches: data with labels, as the model takes it; a few do.
        loss: (model, batch) -> loss; left out, the loss that the model computes itself.
        seed: of the random test matrices.

    Raises:
        InputError: no batches; a loss without a gradient, or not finite; a site that is not called.
    """
    generator = torch.Generator().manual_seed(seed)
    own = [estimator(one, generator) for one in found]
    count = 0
    with evaluated(model), _frozen(model), torch.enable_grad():
        for batch in several(batches):
            with _watching(model, own):
                value = scalar((loss or own_loss)(model, batch))
                if not torch.isfinite(value):
                    raise InputError(f"the loss is {value.item()}: no sensitivity can be measured")
                value.backward()
            for one in own:
                one.batches += 1
            count += 1
    if not count:
        raise InputError("there are no batches: give some of the data that will be trained on")
    for one in own:
        if not one.calls:
            raise InputError(
                f"{one.candidate.site.name!r} is not called, or the loss does not depend on it: "
                "leave it out of the target"
            )
    with torch.no_grad():
        return [one.gains() for one in own]


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter collects a gradient; each asks for one again afterwards."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _watching(model: nn.Module, own: Sequence[Estimator]) -> Iterator[None]:
    places: dict[str, list[Estimator]] = {}
    for one in own:
        places.setdefault(one.candidate.site.homes[0], []).append(one)
    handles = [
        unwrap(model).get_submodule(home).register_forward_hook(_hook(there), with_kwargs=True)
        for home, there in places.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(there: Sequence[Estimator]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> Tensor:
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        if not y.requires_grad:  # the first on the way: here the backward pass may end
            y = y.detach().requires_grad_(True)
        value = y.detach()

        def take(g: Tensor) -> None:
            with torch.no_grad():
                for one in there:
                    one.calls += 1
                    one.take(*one.candidate.seen(x, value, g))

        y.register_hook(take)
        return y

    return hook
