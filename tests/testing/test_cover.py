"""The cover is complete: every pair occurs, and no triple twice."""

from __future__ import annotations

import itertools

import pytest

from trimtab.testing import ARCHITECTURES, LAWS, cover, rotate

Triples = list[tuple[int, str, float]]


def missing(triples: Triples, methods: range, laws: list[str], architectures: list[float]) -> set:
    """The pairs that no triple holds."""
    wanted = {
        *itertools.product(methods, laws),
        *itertools.product(laws, architectures),
        *itertools.product(methods, architectures),
    }
    return wanted - {pair for triple in triples for pair in itertools.combinations(triple, 2)}


SIZES = [(7, 26, 13), (30, 26, 13), (1, 26, 13), (13, 13, 13), (2, 3, 13), (5, 1, 4), (40, 40, 1)]


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_every_pair_occurs(m: int, n: int, k: int) -> None:
    methods, laws, architectures = (
        range(m),
        [f"law {i}" for i in range(n)],
        [i + 0.5 for i in range(k)],
    )
    triples = cover(methods, laws, architectures)
    assert missing(triples, methods, laws, architectures) == set()
    assert len(set(triples)) == len(triples)
    assert len(triples) <= max(m * n, n * k, m * k) + n * k + m * k


def test_a_cover_is_far_from_the_product() -> None:
    assert len(cover(range(30), LAWS, ARCHITECTURES)) == 30 * len(LAWS)


@pytest.mark.parametrize("pair", [(0, "law 1"), ("law 2", 2.5), (1, 3.5)])
def test_control(pair: tuple) -> None:
    """What lacks one pair is seen to lack it."""
    methods, laws, architectures = range(5), ["law 1", "law 2", "law 3"], [0.5, 1.5, 2.5, 3.5]
    triples = [t for t in cover(methods, laws, architectures) if not set(pair) <= set(t)]
    assert pair in missing(triples, methods, laws, architectures)


def test_a_latin_square_meets_every_law_once() -> None:
    triples = rotate(range(3), ["a", "b"], [0.5, 1.5])
    assert [(m, law) for m, law, _ in triples] == list(itertools.product(range(3), ["a", "b"]))
    assert cover([], ["a"], [1]) == []
