"""The base on data: what the sites are given, and the gradient of the loss at their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.adapter import unwrap
from trimtab.core.errors import InputError
from trimtab.init.begin import Place
from trimtab.reference import using

Loss = Callable[[nn.Module, Any], Tensor]
IGNORED = -100
"""The label of positions that no loss looks at."""


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """No dropout; every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """The base as it is evaluated: no adapter, no dropout."""
    with evaluated(model), using(model, None):
        yield


def several(batches: Any) -> Iterable[Any]:
    """The batches, as they are given; an error for a single one, whose parts would be taken for
    batches."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        what = "one batch" if isinstance(batches, Tensor | Mapping) else "no batches at all"
        raise InputError(
            f"batches is an iterable of batches, such as a list or a data loader, and this "
            f"{type(batches).__name__} is {what}: give [batch]"
        )
    return batches


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: named arguments, several, or one."""
    batch = _moved(batch, next(unwrap(model).parameters()).device)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    return [_moved(one, device) for one in batch] if isinstance(batch, list | tuple) else batch


@torch.no_grad()
def watch(
    model: nn.Module, found: Sequence[Place], batch: Any, take: Callable[[str, Tensor], None]
) -> None:
    """Run the base on a batch; `take` gets every site's name and its inputs there (n, in), those of
    padding left out: the same tensor where the model gives several sites the same."""
    handles = []
    rows = _Rows()
    for place in found:
        mask = _mask(unwrap(model), batch, place)
        module = unwrap(model).get_submodule(place.site.homes[0])
        hook = _Hook(place.site.name, mask, rows, take)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()


class _Rows:
    """The rows of the latest input, kept for the next site that is given the same."""

    def __init__(self) -> None:
        self.latest: tuple[Tensor, Tensor | None, Tensor] | None = None

    def of(self, x: Tensor, mask: Tensor | None) -> Tensor:
        fits = mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape
        mask = mask if fits else None
        latest = self.latest
        if latest is not None and latest[0] is x and (latest[1] is None) == (mask is None):
            return latest[2]
        rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask.to(x.device)]
        self.latest = (x, mask, rows)
        return rows


class _Hook:
    def __init__(
        self, name: str, mask: Tensor | None, rows: _Rows, take: Callable[[str, Tensor], None]
    ) -> None:
        self.name, self.mask, self.rows, self.take = name, mask, rows, take

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.take(self.name, self.rows.of(x, self.mask))


def _mask(model: nn.Module, batch: Any, place: Place) -> Tensor | None:
    """The positions (batch, n) that count: no padding, and nothing that the loss ignores."""
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("attention_mask")
    mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None if "decoder" in place.site.name.split(".") else mask
    if isinstance(ids, Tensor) and isinstance(labels, Tensor) and labels.shape == ids.shape:
        counted = labels != IGNORED
        mask = counted if mask is None else mask & counted.to(mask.device)
    return mask


def gradients(
    model: nn.Module, found: Sequence[Place], batches: Iterable[Any], loss: Loss | None
) -> dict[str, Tensor]:
    """The gradient of the mean loss at every site's matrix, (out, in)."""
    weights = {place.site.name: place.site.weight for place in found}
    for name, weight in weights.items():
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise InputError(f"{name!r} has no float parameter of which a gradient could be taken")
    asked = {id(weight): weight.requires_grad for weight in weights.values()}
    total: dict[str, Tensor] = {}
    count = 0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with base_alone(model), torch.enable_grad():
            for batch in batches:
                value = scalar((loss or own_loss)(model, batch))
                found_ = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, found_, strict=True):
                    if gradient is None:
                        raise InputError(f"the loss does not depend on the weight of {name!r}")
                    total[name] = total.get(name, 0) + gradient.float()
                count += 1
    finally:
        for weight in weights.values():
            weight.requires_grad_(asked[id(weight)])
    if not count:
        raise InputError("there are no batches: give some of the data that will be trained on")
    return {place.site.name: _seen(place, total[place.site.name] / count) for place in found}


def _seen(place: Place, gradient: Tensor) -> Tensor:
    """As laws see the weight: (out, in), of a part of a fused map its rows."""
    site = place.site
    whole = (site.whole or site.geometry).read(gradient)
    return whole if site.rows is None else whole[slice(*site.rows)]


def scalar(loss: Any) -> Tensor:
    """What a loss must be for a gradient of it to be taken."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    found = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise InputError(
        f"the loss must be one number that depends on the model's weights, and is {found}"
        + (" without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else "")
    )


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss = getattr(run(model, batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise InputError(
            "the model computes no loss of a batch: put the labels into the batches, or give "
            "loss=function of (model, batch)"
        )
    return loss
