"""How the report writes numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.compare import numbers
from trimtab.evaluate.bootstrap import Interval


@pytest.mark.parametrize(
    ("value", "signed", "written"),
    [
        (0.8612, False, "0.861"),
        (0.041, True, "+0.041"),
        (-0.041, False, "−0.041"),
        (-0.0001, True, "0.000"),
        (12.3456, False, "12.35"),
        (1234.56, False, "1,234.6"),
        (math.nan, False, "–"),
        (math.inf, True, "–"),
    ],
)
def test_metric(value, signed, written):
    assert numbers.metric(value, signed=signed) == written


def test_interval():
    found = Interval(0.861, 0.84, 0.881, 1066)
    assert numbers.with_bounds(found) == "0.861 [0.840, 0.881]"
    assert numbers.bounds(Interval(0, -0.01, 0.02, 9), signed=True) == "[−0.010, +0.020]"


@pytest.mark.parametrize(
    ("part", "whole", "written"),
    [
        (338_690, 23_052_302, "1.47 %"),
        (0, 10, "0 %"),
        (10, 10, "100 %"),
        (1, 10**9, "< 0.01 %"),
        (10**9 - 1, 10**9, "99.9 %"),
        (954, 1000, "95.4 %"),
    ],
)
def test_share(part, whole, written):
    assert numbers.share(part, whole) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.8, "1 h 00 min"),
        (3840, "1 h 04 min"),
        (math.nan, "–"),
    ],
)
def test_duration(seconds, written):
    assert numbers.duration(seconds) == written


@given(st.floats(0, 1e9))
def test_any_duration_is_short(seconds):
    assert len(numbers.duration(seconds)) <= 15
