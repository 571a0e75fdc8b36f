"""Energy: the processor's own counters where they can be read, else stated watts.

    joules = watts · seconds        g CO2 = joules / 3.6e6 · intensity (g/kWh)

Intel's and AMD's counters (RAPL) tell of a whole package: of all that runs on it, not of one
process. On machines that lend out parts of themselves, and for most users, they are not readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
PER_CORE = 10.0
"""Watts assumed for each core, where none are stated: a server processor's rated power, divided."""
SOURCE = "480 g/kWh: the world's electricity in 2023 (Ember, Global Electricity Review 2024)"
KILOWATT_HOUR = 3.6e6


@dataclass(frozen=True)
class Counter:
    """One package's counter of microjoules, which begins again at `top`."""

    path: Path
    top: int

    def read(self) -> int:
        return int(self.path.read_text())


def counters(root: Path = COUNTERS) -> list[Counter]:
    """Those of whole packages that can be read; none on most machines."""
    return list(_readable(root))


def _readable(root: Path) -> Iterator[Counter]:
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:  # a part of a package, counted in it already
            continue
        try:
            counter = Counter(
                folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())
            )
            counter.read()
        except (OSError, ValueError):
            continue
        yield counter


class Meter:
    """Joules since it was made; None without counters."""

    def __init__(self, found: list[Counter] | None = None) -> None:
        self.counters = counters() if found is None else found
        self.before = [one.read() for one in self.counters]

    def joules(self) -> float | None:
        if not self.counters:
            return None
        now = [one.read() for one in self.counters]
        pairs = zip(self.counters, self.before, now, strict=True)
        return sum((after - before) % one.top for one, before, after in pairs) / 1e6


def watts(stated: float | None) -> tuple[float, str]:
    """The power that seconds are counted at, and where it comes from."""
    if stated is not None:
        return stated, f"{stated:g} W, as stated with --watts"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = PER_CORE * (cores or 1)
    return found, f"{found:g} W, assumed: {PER_CORE:g} W for each core; state yours with --watts"


def carbon(joules: float, intensity: float) -> float:
    """Grams of CO2."""
    return joules / KILOWATT_HOUR * intensity
