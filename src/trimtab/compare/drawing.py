"""Small pictures as numbers: where dots, lines and words stand on a sheet of WIDTH by HEIGHT.

The page's one macro draws them as SVG, which needs no script, prints sharply, and weighs next to
nothing. Words are placed where they cover neither a dot nor one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.compare import numbers
from trimtab.compare.charts import INK, MUTED

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 14, 44
LETTER, LINE = 6.1, 13.0  # of the words beside dots, in the sheet's units
TONES = (
    *("#1f6f78", "#b4542f", "#5b6bb5", "#7d8c24", "#a8518a", "#b98112", "#3f8f5f", "#8a5a3c"),
    *("#3b7fc4", "#b0413e", "#6a6f9c", "#5f7f2c"),
)
FIXED = {"full": INK, "head": MUTED}
NONE = "none"
_FOOT = 0.05  # of the sheet's width, where what is none stands
_DROPS = [4 + sign * 13 * step for step in range(12) for sign in (1, -1)]  # of words, by nearness


def tones(names: Sequence[str]) -> dict[str, str]:
    """A colour for each, the same in all pictures."""
    free = [name for name in dict.fromkeys(names) if name not in FIXED]
    return {**FIXED, **{name: TONES[i % len(TONES)] for i, name in enumerate(free)}}


@dataclass(frozen=True)
class Axis:
    """Values from low to high on 0 to 1; on a log axis what is not above zero stands at its foot,
    under the word "none"."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        low, high = math.log10(self.low), math.log10(self.high)
        return _FOOT if value <= 0 else (math.log10(value) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return [(self(value), numbers.short(value)) for value in _round(self.low, self.high)]
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        found = [(self(10.0**p), numbers.short(10.0**p)) for p in range(first, last + 1)]
        if len(found) < 2:
            steps = [m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 5)]
            within = [value for value in steps if self.low <= value <= self.high]
            found = [(self(value), numbers.short(value)) for value in within]
        return found


def linear(values: Sequence[float]) -> Axis:
    """Around all values, with a little air."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * (abs(high) or 1.0)
    return Axis(low - air, high + air)


def logarithmic(values: Sequence[float]) -> Axis:
    """Around all that are above zero; with room at its foot where one is not."""
    above = [value for value in values if value > 0] or [1.0]
    foot = 8.0 if len(above) < len(values) else 1.6
    return Axis(min(above) / foot, max(above) * 1.6, log=True)


@dataclass(frozen=True)
class Dot:
    """A value with its name; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    name: str
    tone: str
    told: str
    low: float | None = None
    high: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Path:
    """A line through values."""

    points: Sequence[tuple[float, float]]
    tone: str
    dashed: bool = False


@dataclass
class Word:
    x: float
    y: float
    text: str
    tone: str
    anchor: str = "start"


@dataclass
class Picture:
    """A sheet, in its own units: what the macro draws."""

    name: str
    caption: str
    detail: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[dict[str, object]] = field(default_factory=list)
    paths: list[dict[str, object]] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)


def picture(
    name: str,
    caption: str,
    detail: str,
    titles: tuple[str, str],
    axes: tuple[Axis, Axis],
    dots: Sequence[Dot],
    paths: Sequence[Path] = (),
) -> Picture:
    """Everything in its place."""
    x, y = axes
    x_ticks = [(_across(at), text) for at, text in x.ticks()]
    if x.log and any(dot.x <= 0 for dot in dots):
        beyond = [one for one in x_ticks if one[0] > _across(_FOOT + 0.1)]
        x_ticks = [(_across(_FOOT), NONE), *beyond]
    y_ticks = [(_down(at), text) for at, text in y.ticks()]
    made = Picture(name, caption, detail, *titles, x_ticks, y_ticks)
    for path in paths:
        points = " ".join(f"{_across(x(a)):.1f},{_down(y(b)):.1f}" for a, b in path.points)
        made.paths.append({"points": points, "tone": path.tone, "dashed": path.dashed})
    for dot in dots:
        ends = (dot.low, dot.high)
        low, high = (None if end is None else round(_down(y(end)), 1) for end in ends)
        made.marks.append({
            "x": round(_across(x(dot.x)), 1), "y": round(_down(y(dot.y)), 1), "tone": dot.tone,
            "low": low, "high": high, "told": dot.told, "strong": dot.strong,
        })  # fmt: skip
    made.words = _words(made.marks, dots)
    return made


def front(points: Sequence[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Those (cost, metric) that no other beats in both, by cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda one: (one[0], -one[1] if higher else one[1])):
        if not best or (value > best[-1][1] if higher else value < best[-1][1]):
            best.append((cost, value))
    return best


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _down(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _words(marks: Sequence[dict[str, object]], dots: Sequence[Dot]) -> list[Word]:
    """Each name at the first place around its dot where it covers nothing."""
    taken: list[Box] = []
    for mark in marks:
        x, y = float(str(mark["x"])), float(str(mark["y"]))
        taken.append((x - 5, y - 5, x + 5, y + 5))
    words = []
    for mark, dot in zip(marks, dots, strict=True):
        x, y = float(str(mark["x"])), float(str(mark["y"]))
        wide = LETTER * len(dot.name)
        if not dot.name:
            continue
        beside = 12 if dot.strong else 9
        places = [(x + beside * side, y + drop, side) for drop in _DROPS for side in (1, -1)]
        within = [one for one in places if _within(_box(one, wide))] or places
        place = next((one for one in within if _free(_box(one, wide), taken)), within[0])
        taken.append(_box(place, wide))
        anchor = "start" if place[2] > 0 else "end"
        words.append(Word(round(place[0], 1), round(place[1], 1), dot.name, dot.tone, anchor))
    return words


def _box(place: tuple[float, float, int], wide: float) -> Box:
    x, y, side = place
    left = x if side > 0 else x - wide
    return left, y - LINE + 3, left + wide, y + 2


def _within(box: Box) -> bool:
    left, top, right, bottom = box
    return left >= LEFT and right <= WIDTH and top >= 0 and bottom <= HEIGHT - BOTTOM + 2


def _free(box: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    return not any(
        left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
        for other in taken
    )


def _round(low: float, high: float) -> list[float]:
    """About five round numbers between two values."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
