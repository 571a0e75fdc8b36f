"""Some of many rows. A file may be in order of its labels: its first rows are then of one kind."""

from __future__ import annotations

from typing import Any

import numpy as np


def drawn(rows: Any, most: int, seed: int) -> Any:
    """At most so many rows, drawn with the seed, in the order that they have."""
    if len(rows) <= most:
        return rows
    places = np.random.default_rng(seed).permutation(len(rows))[:most]
    return rows.select(sorted(places.tolist()))
