"""Shared fixtures. What the tests run over is in `cases.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# Tiny models: threads would only wait for each other, a hundred times over under `-n 2`.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Each test draws the same numbers whichever tests ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
