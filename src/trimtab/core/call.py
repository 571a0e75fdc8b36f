"""The facts of one forward pass, set at the model's root and at its stacks, read by laws."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError

Route = Sequence[str | None]
Groups = tuple[dict[str | None, list[int]], Tensor]


@dataclass
class Call:
    """What laws may know of the forward pass that they are part of.

    `route` names one adapter an example (None: the base alone), `task_ids` (batch,) one task.
    `masks` are the attention masks (batch, positions) by stack, prompts included; `positions` what
    each position counts as (batch or 1, positions), of a stack that has no such mask; `past` the
    number of positions already in a stack's cache, and `cached` whether the caller gave that cache;
    `prompted` how many a prompt has put in front; `taps` what sites were given or gave, for laws
    that read several; `unlabelled` (batch, positions) what stands before the first label; `rows`
    which rows of how many these facts are of; `leading` how many rows a tensor has whose rows are
    examples (first), or parts of them in order; `regrows` whether a caller generates without a
    cache, so that every pass reads what was generated as well; `groups` which rows of a batch go to
    which adapter.
    """

    route: tuple[str | None, ...] | None = None
    task_ids: Tensor | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, Tensor] = field(default_factory=dict)
    past: dict[str, int] = field(default_factory=dict)
    prompted: dict[str, int] = field(default_factory=dict)
    cached: dict[str, bool] = field(default_factory=dict)
    taps: dict[str, Tensor] = field(default_factory=dict)
    unlabelled: Tensor | None = None
    rows: tuple[Tensor, int] | None = None
    leading: list[int] = field(default_factory=list)
    regrows: bool = False
    groups: list[tuple[tuple[str, ...], int, Groups]] = field(default_factory=list)

    def grouped(self, parts: tuple[str, ...], batch: int) -> dict[str | None, list[int]]:
        """Which rows go to which adapter, found once for all sites of the call."""
        return self._groups(parts, batch)[0]

    def places(self, parts: tuple[str, ...], batch: int) -> Tensor:
        """Of each example of the route: which of those adapters is its own, by number."""
        return self._groups(parts, batch)[1]

    def _groups(self, parts: tuple[str, ...], batch: int) -> Groups:
        for known, size, groups in self.groups:  # to hash a thousand names at each site takes time
            if known is parts and size == batch:
                return groups
        found = rows(self.route, parts, batch)
        number = {name: index for index, name in enumerate(found)}
        places = torch.tensor([number[name] for name in self.route or ()])
        self.groups.append((parts, batch, (found, places)))
        return found, places

    def takes(self, shape: Sequence[int]) -> None:
        """Rows of a tensor (examples, positions, …) that the model or one of its stacks is given:
        flattened they remain rows of examples."""
        if not self.leading or shape[0] in self.leading:
            self.leading = [*self.leading, *itertools.accumulate(shape, operator.mul)]

    def examples(self, shape: Sequence[int], site: str) -> int:
        """The number of rows of an input of this shape, once they are known to be examples'."""
        known, rows = self.leading or [len(self.route or ())], shape[0]
        positions = len(shape) == 1 and rows == known[0] and rows * rows in known
        if rows not in known or (positions and rows > 1):
            raise InputError(
                f"{site!r} is called with {tuple(shape)}, and the batch has {known[0]} examples: "
                "rows there are not examples (positions, or tokens chosen by a router), so that no "
                "adapter there can be routed by example; choose a target that leaves it out"
            )
        return rows

    def refuse_packed(self, stack: str | None) -> None:
        """For a law that sees an example as a whole: several in a row are none of them."""
        counted = self.positions.pop(stack or "", None)  # asked once a call
        if counted is None:
            return
        one = (counted.diff(dim=-1) == 1).all()
        if torch.compiler.is_compiling():
            torch._assert_async(one, _PACKED)
        elif not one:
            raise InputError(_PACKED)

    def mask(self, stack: str | None, x: Tensor) -> Tensor | None:
        """The mask (batch, positions) of the positions of x (batch, positions, …), if one is
        known, for a law that sees an example as a whole."""
        self.refuse_packed(stack)
        mask = self.masks.get(stack or "")
        if mask is None or x.ndim < 3 or mask.shape[1] < x.shape[1]:
            return None
        return repeated(mask[:, mask.shape[1] - x.shape[1] :], x.shape[0], "the attention mask")

    def prompt(self, stack: str | None, x: Tensor) -> Tensor | None:
        """Which positions of x (batch, positions, …) are real tokens of the prompt: 0 or 1 (batch,
        positions), without labels all; None where a cache holds the prompt already."""
        if self.past.get(stack or ""):
            return None
        if self.regrows:
            raise InputError(
                "an adapter at some positions of the prompt cannot tell the prompt from what was "
                "generated where no cache is used: generate with use_cache=True"
            )
        mask = self.mask(stack, x)
        shape, device = x.shape[:2], x.device
        real = torch.ones(shape, dtype=torch.long, device=device) if mask is None else mask.long()
        before = self.unlabelled
        if before is None or before.shape[1] + self.prompted.get(stack or "", 0) != shape[1]:
            return real
        front = before.new_ones(before.shape[0], shape[1] - before.shape[1])
        before = repeated(torch.cat([front, before], dim=1).to(device), shape[0], "labels") * real
        return torch.where(before.any(1, keepdim=True), before, real)

    def tap(self, key: str | None) -> Tensor:
        """What was tapped under this key in this call."""
        if key not in self.taps:
            raise InputError(f"{key!r} was not called before the site that reads its input")
        return self._mine(self.taps[key])

    def _mine(self, tap: Tensor) -> Tensor:
        if self.rows is None:
            return tap
        index, batch = self.rows
        return repeated(tap, batch, "a fact of the call")[index.to(tap.device)]

    def tasks(self, count: int) -> Tensor:
        """The task of each example, one of `count`."""
        ids = self.task_ids
        if ids is None:
            raise InputError(
                "this adapter needs a task for each example: pass task_ids (batch,) to the model, "
                "or run it within `with trimtab.given(model, task_ids=…)`"
            )
        if not torch.compiler.is_compiling() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise InputError(f"task_ids must lie in 0 … {count - 1}, and are {ids.tolist()}")
        return ids

    def part(self, index: Tensor, batch: int) -> Call:
        """The facts of some rows of the batch alone."""

        def rows(tensor: Tensor) -> Tensor:
            return repeated(tensor, batch, "a fact of the call")[index.to(tensor.device)]

        return dataclasses.replace(
            self,
            route=None,
            task_ids=None if self.task_ids is None else rows(self.task_ids),
            masks={key: rows(mask) for key, mask in self.masks.items()},
            positions={key: rows(counted) for key, counted in self.positions.items()},
            unlabelled=None if self.unlabelled is None else rows(self.unlabelled),
            rows=(index, batch),  # taps are cut where they are read: there is one a site
        )


_PACKED = (
    "several examples are packed into one row (position_ids start anew within it), and an active "
    "adapter reads or extends an example as a whole, which would be all of them: give each example "
    "a row of its own, with an attention_mask"
)


def rows(
    route: tuple[str | None, ...] | None, parts: tuple[str, ...], batch: int
) -> dict[str | None, list[int]]:
    """Which rows of the batch go to which adapter; beams stand next to each other."""
    if route is None:
        raise InputError(
            f"the adapters {parts} are routed: say which acts on which example, as "
            "model(…, route=[…]) or within `with trimtab.given(model, route=[…])`"
        )
    known = {*parts, None}
    unknown = [name for name in route if name not in known]
    if unknown:
        raise InputError(f"route names {unknown[0]!r}, which is none of {parts}")
    if not route or batch % len(route):
        raise InputError(f"route names {len(route)} adapters, for a batch of {batch} examples")
    each = batch // len(route)
    found: dict[str | None, list[int]] = {}
    for row in range(batch):
        found.setdefault(route[row // each], []).append(row)
    return found


def repeated(tensor: Tensor, batch: int, what: str) -> Tensor:
    """One row an example -> one row of the batch: beams stand next to each other."""
    if tensor.shape[0] == batch:
        return tensor
    if tensor.shape[0] == 1:
        return tensor.expand(batch, *tensor.shape[1:])
    if tensor.shape[0] == 0 or batch % tensor.shape[0]:
        raise InputError(
            f"{what} has {tensor.shape[0]} rows, which does not fit a batch of {batch} examples"
        )
    return tensor.repeat_interleave(batch // tensor.shape[0], dim=0)


def facts(route: Any = None, task_ids: Any = None) -> dict[str, Any]:
    """The given facts, checked, as a `Call` takes them."""
    if route is not None:
        if isinstance(route, str) or not all(one is None or isinstance(one, str) for one in route):
            raise InputError(f"route names one adapter an example, or None, not {route!r}")
        route = tuple(route)
    if task_ids is not None:
        task_ids = torch.as_tensor(task_ids)
        if task_ids.ndim != 1 or task_ids.is_floating_point():
            raise InputError(f"task_ids holds one whole number an example, not {task_ids!r:.60}")
    return {"route": route, "task_ids": task_ids}


@contextlib.contextmanager
def given(model: nn.Module, *, route: Route | None = None, task_ids: Any = None) -> Iterator[None]:
    """Facts for all forward passes within: which adapter acts on which example, which task it is.

    Where the model is called directly the same can be passed to the call, `model(…, route=[…])`;
    `generate` and training loops that check their arguments need this.
    """
    from trimtab.core.adapter import record

    switch = record(model).switch
    named = {name: fact for name, fact in facts(route, task_ids).items() if fact is not None}
    before, switch.given = switch.given, {**switch.given, **named}
    switch.inside = False  # an interrupted forward pass could not say that it is over
    try:
        yield
    finally:
        switch.given = before
