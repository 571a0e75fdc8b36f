"""How the report writes numbers: one way for each kind, a real minus, no false precision."""

from __future__ import annotations

import math

from trimtab.evaluate.bootstrap import Interval

UNDEFINED = "–"


def metric(value: float, *, signed: bool = False) -> str:
    """0.861, 12.35, 1,234.5: three decimals for shares, fewer for what is counted in units."""
    if not math.isfinite(value):
        return UNDEFINED
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    value = round(value, decimals) + 0.0  # adding zero turns -0.0 into 0.0
    written = f"{abs(value):,.{decimals}f}"
    return ("−" if value < 0 else "+" if signed and value > 0 else "") + written


def bounds(found: Interval, *, signed: bool = False) -> str:
    """[0.840, 0.881]"""
    return f"[{metric(found.low, signed=signed)}, {metric(found.high, signed=signed)}]"


def with_bounds(found: Interval, *, signed: bool = False) -> str:
    """0.861 [0.840, 0.881]"""
    return f"{metric(found.value, signed=signed)} {bounds(found, signed=signed)}"


def count(number: int) -> str:
    """338,690"""
    return f"{number:,}"


def share(part: int, whole: int) -> str:
    """1.47 %; never 0 % of something, never 100 % of less than all."""
    percent = 100 * part / whole
    if part in (0, whole):
        return f"{percent:.0f} %"
    if percent < 0.01:
        return "< 0.01 %"
    return f"{min(percent, 99.99):.2f} %" if percent < 10 else f"{min(percent, 99.9):.1f} %"


def short(value: float) -> str:
    """0.85, 20, 5 k, 1 M: beside an axis."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """0.8 s, 42 s, 3 min 12 s, 1 h 04 min."""
    if not math.isfinite(seconds):
        return UNDEFINED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
