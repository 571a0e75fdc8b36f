"""Laws of dividing a budget: never above it, never less for more, the best where that is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.plan import allocate, parse

Table = Sequence[Sequence[float]]


def total(table: Table, ranks: Sequence[int]) -> float:
    return sum(sum(row[:rank]) for row, rank in zip(table, ranks, strict=True))


def best(gains: Table, costs: Table, budget: float) -> float:
    """By trying everything."""
    each = (range(len(row) + 1) for row in gains)
    fitting = (ranks for ranks in itertools.product(*each) if total(costs, ranks) <= budget)
    return max(total(gains, ranks) for ranks in fitting)


rows = st.lists(st.integers(0, 50), min_size=1, max_size=3)
cases = st.lists(st.tuples(rows, st.integers(1, 9)), min_size=1, max_size=4)


def tables(case: list[tuple[list[int], int]]) -> tuple[Table, Table]:
    gains = [sorted(row, reverse=True) for row, _ in case]
    return gains, [[cost] * len(row) for row, (_, cost) in zip(gains, case, strict=True)]


@settings(max_examples=150, deadline=None)
@given(cases, st.integers(0, 40), st.integers(0, 10))
def test_never_above_the_budget_nor_less_for_more(
    case: list[tuple[list[int], int]], budget: int, more: int
) -> None:
    gains, costs = tables(case)
    here, there = (allocate(gains, costs, amount) for amount in (budget, budget + more))
    assert total(costs, here) <= budget
    assert total(gains, there) >= total(gains, here)


@settings(max_examples=100, deadline=None)
@given(cases, st.integers(0, 12))
def test_the_best_there_is_where_costs_are_equal(
    case: list[tuple[list[int], int]], budget: int
) -> None:
    gains, _ = tables(case)
    costs = [[1] * len(row) for row in gains]
    assert total(gains, allocate(gains, costs, budget)) == best(gains, costs, budget)


@settings(max_examples=100, deadline=None)
@given(cases, st.integers(1, 40))
def test_no_further_from_the_best_than_one_step(
    case: list[tuple[list[int], int]], budget: int
) -> None:
    gains, costs = tables(case)
    found = total(gains, allocate(gains, costs, budget))
    assert best(gains, costs, budget) - found <= max(max(row) for row in gains)


def test_a_dear_first_rank_is_weighed_with_those_that_follow() -> None:
    """As of a magnitude that comes with the first rank: alone it is worth less than what is
    behind it."""
    assert allocate([[1, 9], [3]], [[4, 1], [3]], 5) == [2, 0]
    assert allocate([[1, 9], [3]], [[4, 1], [3]], 4) == [0, 1]


def test_what_gains_nothing_gets_nothing() -> None:
    assert allocate([[0.0, 0.0], [2.0, 0.0]], [[1, 1], [1, 1]], 10) == [0, 1]


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("0.5%", 5_000), ("200k", 200_000), ("1.5M", 1_500_000), ("1MB", 249_900), ("300", 300)],
)
def test_budgets(text: str, parameters: int) -> None:
    assert parse(text).parameters(1_000_000, width=4, beside=100) == parameters


@pytest.mark.parametrize("text", ["", "much", "0", "120%", "5 apples", "-3k"])
def test_what_is_no_budget_is_told(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        parse(text)
