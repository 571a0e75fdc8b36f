"""Batches of like lengths: a permutation, drawn from (seed, epoch) alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tune.trainer import LengthGroups

LENGTHS = [3 + (7 * i) % 50 for i in range(300)]


def order(epoch: int = 0, seed: int = 0) -> list[int]:
    groups = LengthGroups(LENGTHS, 8, seed)
    groups.set_epoch(epoch)
    return list(groups)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200),
    size=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
def test_every_example_once(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    groups = LengthGroups(lengths, size, seed)
    groups.set_epoch(epoch)
    assert sorted(groups) == list(range(len(lengths)))
    assert len(groups) == len(lengths)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = order()
    torch.manual_seed(123)
    assert order() == first
    assert order(epoch=1) != first
    assert order(seed=1) != first
    groups = LengthGroups(LENGTHS, 8, 0)
    list(groups)
    groups.set_epoch(3)
    assert list(groups) == order(epoch=3)


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    order()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_has_like_lengths() -> None:
    def padding(batches: list[int]) -> int:
        groups = [batches[i : i + 8] for i in range(0, len(batches), 8)]
        return sum(max(LENGTHS[i] for i in g) * len(g) - sum(LENGTHS[i] for i in g) for g in groups)

    assert padding(order()) < padding(list(range(300))) / 3
