"""Most gain for a budget.

    max Σ_i gain_i(r_i)   subject to   Σ_i cost_i(r_i) ≤ budget

A greedy choice, most gain per cost first, over the concave hull of each candidate's gains, is the
optimum of the budget that it has spent; of any budget where costs are equal and gains fall. What
the next step does not fit into goes to later ones that fit. More budget never gives less gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FLOAT = 1e-9  # of a budget: what sums of floats may leave


@dataclass(frozen=True)
class Step:
    """From one point of a candidate's hull to the next: to `ranks` of them."""

    candidate: int
    ranks: int
    cost: float
    gain: float

    @property
    def worth(self) -> float:
        return self.gain / self.cost


def allocate(
    gains: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """How many ranks each candidate gets; `gains` and `costs` are of each further rank."""
    steps = [
        step
        for index, (gain, cost) in enumerate(zip(gains, costs, strict=True))
        for step in hull(index, gain, cost)
    ]
    # The sort is stable: of equal worth the earlier site is first, and within one the lower rank.
    steps.sort(key=lambda step: -step.worth)
    ranks, left, closed = [0] * len(gains), budget * (1 + _FLOAT), set()
    for step in steps:
        if step.candidate in closed:
            continue
        if step.cost <= left:
            left -= step.cost
            ranks[step.candidate] = step.ranks
        else:
            closed.add(step.candidate)
    return ranks


def hull(candidate: int, gains: Sequence[float], costs: Sequence[float]) -> list[Step]:
    """The upper concave hull of gain over cost, as steps whose worth falls; what gains nothing is
    left out."""
    steps: list[Step] = []
    for ranks, (gain, cost) in enumerate(zip(gains, costs, strict=True), start=1):
        step = Step(candidate, ranks, cost, gain)
        while steps and step.worth > steps[-1].worth:
            last = steps.pop()
            step = Step(candidate, ranks, last.cost + step.cost, last.gain + step.gain)
        steps.append(step)
    return [step for step in steps if step.gain > 0]
