"""From what each rank is worth and costs to a plan under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.core.method import Method, Selection
from trimtab.core.sparse import Sparse
from trimtab.match import among, sites
from trimtab.plan.allocate import allocate
from trimtab.plan.candidates import Candidate, at_rank, ranked
from trimtab.plan.file import WHOLE, Entry


def entries(
    found: Sequence[Candidate],
    gains: Sequence[Tensor],
    budget: float,
    costs: Sequence[Sequence[float]] | None = None,
) -> tuple[Entry, ...]:
    """Divide a budget among candidates; `costs` are of each further rank, in the budget's unit,
    and parameters where they are left out."""
    costs = [one.costs for one in found] if costs is None else costs
    worth = [one.tolist() for one in gains]
    ranks = allocate(worth, costs, budget)
    if not any(ranks):
        least = min(cost[0] for cost in costs)
        raise InputError(
            f"the budget allows {budget:,.6g}, and the cheapest site takes {least:,.6g}: give more"
        )
    return tuple(map(_entry, found, worth, ranks))


def _entry(candidate: Candidate, worth: Sequence[float], rank: int) -> Entry:
    has_rank = candidate.view == "map"
    arguments = _stated(candidate.method)
    return Entry(
        candidate.site.name,
        candidate.method.name,
        rank if has_rank else None,
        has_rank or bool(rank),
        gain=float(sum(worth[:rank])),
        cost=sum(candidate.costs[:rank]),
        sensitivity=float(sum(worth)),
        arguments=arguments,
    )


def _stated(method: Method) -> dict[str, Any]:
    """What differs from the method's defaults: with alpha at the default rank, as a plan reads it,
    where the update's scale is that of the method as it was given."""
    defaults = type(method)().arguments()
    held = at_rank(method, defaults["rank"]).arguments() if ranked(method) else method.arguments()
    return {key: held[key] for key in held if held[key] != defaults[key] and key != "rank"}


def whole(model: nn.Module, method: Method, budget: int) -> Entry:
    """The most of a method that takes its places from the whole model: top blocks, a sparse mask,
    or all."""
    if isinstance(method, Selection):
        return _selected(model, method, budget)
    assert isinstance(method, Sparse)
    found = among(sites(model), method.targets, method)
    weights = sum(site.out_features * site.in_features for site in found)
    if budget < len(found):
        raise InputError(f"{method.name}: {budget:,} values for {len(found)} sites: give more")
    density = min(1.0, budget / weights)
    cost = sum(int(density * site.out_features * site.in_features) for site in found)
    return Entry(
        *(",".join(method.targets), method.name), cost=cost, arguments={"density": density}
    )


def _selected(model: nn.Module, method: Selection, budget: int) -> Entry:
    from trimtab.core.heads import heads

    own = {name: parameter.numel() for name, parameter in model.named_parameters()}
    head = tuple(f"{name}." for name in heads(model))

    def cost(method: Selection) -> int:
        return sum(own[name] for name in method.chosen(model) if not name.startswith(head))

    arguments = method.arguments()
    if "top" in arguments:
        top = 0
        while True:
            try:
                fits = cost(type(method)(top=top + 1)) <= budget
            except InputError:  # there are no more
                break
            if not fits:
                break
            top += 1
        if not top:
            one = cost(type(method)(top=1))
            raise InputError(
                f"{method.name}: one block has {one:,} parameters, and the budget is {budget:,}"
            )
        method = type(method)(top=top)
        arguments = {"top": top}
    if (needed := cost(method)) > budget:
        raise InputError(f"{method.name} trains {needed:,} parameters; the budget is {budget:,}")
    return Entry(WHOLE, method.name, cost=needed, arguments=arguments)
