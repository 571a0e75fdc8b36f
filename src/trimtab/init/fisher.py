"""The places of sparse adapters from data: where the Fisher information is largest.

Each site's values are spread over its whole matrix for as long as it takes, at zero, so that their
gradients are those of every number of the weight, whatever the base's storage or precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core import sharded
from trimtab.core.adapter import Adapter, record, unwrap
from trimtab.core.delta import Delta
from trimtab.core.errors import InputError, StateError
from trimtab.core.sparse import Sparse, held, largest
from trimtab.init.observe import Loss, evaluated, own_loss, scalar, several


def fisher(
    model: nn.Module,
    batches: Iterable[Any],
    name: str | None = None,
    *,
    loss: Loss | None = None,
    examples: int = 1024,
) -> Adapter:
    """Choose the places of a sparse adapter (`Fish`, `SHiRA`): before an optimizer is made.

    The empirical Fisher information of a weight is the mean square of its gradient for single
    examples. Batches are therefore taken apart, and each example is run by itself, in evaluation
    mode. `Fish` shares its budget out over all sites; `SHiRA` keeps as many values at each.

    Args:
        batches: what the model is called with: mappings of arguments, or anything that `loss` takes
            as long as tensors in mappings, tuples and lists have the examples first.
        name: the adapter; the only one, if left out. It must be active and untrained.
        loss: of (model, batch of one); the model's own, if left out.
        examples: how many to look at.
    """
    batches = several(batches)
    sharded.refuse(unwrap(model))
    adapter = record(model).adapter(name)
    members = [delta for delta in adapter.members if isinstance(delta.method, Sparse)]
    _refuse(model, adapter, members)
    budgets = _budgets(members)
    spread = [_Spread(delta) for delta in members]
    try:
        scores = _scores(model, [one.every for one in spread], batches, loss or own_loss, examples)
    finally:
        for one in spread:
            one.put_back()
    counts = _counts([one.method for one in spread], budgets, scores)
    for one, score, count in zip(spread, scores, counts, strict=True):
        one.choose(score, count)
    adapter.renew()
    return adapter


def _refuse(model: nn.Module, adapter: Adapter, members: list[Delta]) -> None:
    if not members:
        raise InputError(
            f"adapter {adapter.name!r} has no places to choose: it takes a sparse method, such as "
            "trimtab.Fish() or trimtab.SHiRA()"
        )
    if adapter.name not in record(model).switch.active:
        raise StateError(f"adapter {adapter.name!r} is not active: activate it first")
    for delta in members:
        if delta.site.geometry.count:
            raise InputError(
                f"{delta.site.name!r} holds several matrices, for which no places can be chosen: "
                "leave it out"
            )
        if bool(delta.tensors()["values"].any()):
            raise StateError(
                f"adapter {adapter.name!r} was trained: its places are chosen before, once attached"
            )


class _Spread:
    """A delta whose values are spread over the whole matrix, until it is put back."""

    def __init__(self, delta: Delta) -> None:
        assert isinstance(delta.method, Sparse)
        self.delta, self.method = delta, delta.method
        self.values, self.indices = delta.tensors()["values"], delta.tensors()["indices"]
        size, self.width = delta.site.out_features * delta.site.in_features, delta.site.in_features
        every = held(torch.arange(size, device=self.values.device), self.width)
        self.every = nn.Parameter(every["values"].value.to(self.values))
        delta._parameters["values"] = self.every
        delta._buffers["indices"] = every["indices"].value.to(self.indices)

    def put_back(self) -> None:
        assert isinstance(self.values, nn.Parameter)
        self.delta._parameters["values"] = self.values
        self.delta._buffers["indices"] = self.indices

    def choose(self, score: Tensor, count: int | None) -> None:
        """The same parameter, for optimizers that have not begun, at other places."""
        count = self.values.numel() if count is None else count
        placed = held(largest(score, count), self.width)
        self.values.data, self.values.grad = placed["values"].value.to(self.values), None
        self.delta._buffers["indices"] = placed["indices"].value.to(self.indices)
        self.delta.become(self.method.placed(count))


def _scores(
    model: nn.Module, values: list[Tensor], batches: Iterable[Any], loss: Loss, examples: int
) -> list[Tensor]:
    """The sum of the squared gradients of single examples, for every number of each matrix."""
    sums = [torch.zeros_like(one, requires_grad=False) for one in values]
    seen = 0
    with evaluated(model), torch.enable_grad():
        for example in itertools.islice(_examples(batches), examples):
            found = torch.autograd.grad(scalar(loss(model, example)), values, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                total += 0 if gradient is None else gradient.square()
            seen += 1
    if not seen:
        raise InputError(f"batches hold no example, or examples={examples}: there is none to see")
    if not all(bool(total.isfinite().all()) for total in sums):
        raise InputError("the loss has gradients that are not finite: no places can be chosen")
    return sums


def _budgets(members: list[Delta]) -> dict[Sparse, int | None]:
    """How many values the sites of each method have among them."""
    sizes: dict[Sparse, list[int]] = {}
    for delta in members:
        assert isinstance(delta.method, Sparse)
        size = delta.site.out_features * delta.site.in_features
        sizes.setdefault(delta.method, []).append(size)
    return {method: method.allotted(found) for method, found in sizes.items()}


def _counts(
    methods: list[Sparse], budgets: Mapping[Sparse, int | None], scores: list[Tensor]
) -> list[int | None]:
    """How many values each site gets: as many of the largest scores over its method's sites as lie
    there."""
    counts: list[int | None] = [None] * len(scores)
    for method, budget in budgets.items():
        own = [index for index, one in enumerate(methods) if one == method]
        if budget is not None:
            sizes = torch.tensor([scores[index].numel() for index in own])
            best = torch.cat([scores[index].cpu() for index in own]).topk(budget).indices
            chosen = torch.arange(len(own)).repeat_interleave(sizes)[best]
            for index, count in zip(own, chosen.bincount(minlength=len(own)).tolist(), strict=True):
                counts[index] = count
    return counts


def _examples(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        sizes = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
        if len(sizes) != 1:
            raise InputError(
                "the tensors of a batch must have its examples first, as many in each, and have "
                f"sizes {sorted(sizes)}"
            )
        for index in range(sizes.pop()):
            yield _one(batch, index)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _one(batch: Any, index: int) -> Any:
    """The example of this index, as a batch."""
    if isinstance(batch, Tensor):
        return batch[index : index + 1] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: _one(part, index) for key, part in batch.items()}
    if isinstance(batch, list | tuple):
        return tuple(_one(part, index) for part in batch)
    return batch
