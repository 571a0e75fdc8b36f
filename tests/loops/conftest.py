"""Fixtures of the tests of loops; what they run over is in `kinds.py`."""

from __future__ import annotations

import kinds
import pytest


@pytest.fixture(autouse=True)
def _needs_shared() -> None:
    if not kinds.STORIES.is_dir():
        pytest.skip(f"{kinds.SHARED} is absent: the tests of loops train a real model on real text")


@pytest.fixture(params=kinds.METHODS, ids=str)
def kind(request: pytest.FixtureRequest) -> kinds.Kind:
    return request.param


@pytest.fixture(params=kinds.HEADLESS, ids=str)
def headless(request: pytest.FixtureRequest) -> kinds.Kind:
    return request.param
