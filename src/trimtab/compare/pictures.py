"""The pictures of a comparison: metric against cost, forgetting against gain, learning curves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trimtab.compare import numbers
from trimtab.compare.drawing import Dot, Path, Picture, front, linear, logarithmic, picture, tones
from trimtab.compare.verdict import named

_FRONT = "the line joins those that no other beats in both"

Found = Mapping[str, Any]
Cost = Callable[[Found], float | None]


def pictures(found: Found) -> dict[str, Picture]:
    """Those for which there is something to draw, by name."""
    return {one.name: one for one in _drawn(found)}


def _drawn(found: Found) -> Iterator[Picture]:
    if not found["rows"]:
        return
    tone = tones([named(row, found) for row in found["rows"]])
    parameters = _against_cost(
        found, tone, lambda row: row["trained"], "parameters", "trained parameters"
    )
    seconds = _against_cost(found, tone, _seconds, "seconds", "seconds of training")
    for one in (parameters, seconds, _forgetting(found, tone), _curves(found, tone)):
        if one is not None:
            yield one


def _seconds(row: Found) -> float | None:
    return row["seconds"] if row["kind"] in ("trained", "head") else 0.0


def _shown(found: Found) -> list[tuple[int, Found]]:
    """The rows with a value, the untrained base apart."""
    return [
        (i, row) for i, row in enumerate(found["rows"]) if row["test"] and row["kind"] != "base"
    ]


def _against_cost(
    found: Found, tone: Mapping[str, str], cost: Cost, name: str, title: str
) -> Picture | None:
    """With the front of those that no other beats in both."""
    dots = []
    for i, row in _shown(found):
        x, test, method = cost(row), row["test"], named(row, found)
        if x is None:
            continue
        told = f"{method}: {numbers.metric(test['value'])}, {numbers.short(x)} {title}"
        strong = i == found["verdict"]["choice"]
        dots.append(
            Dot(x, test["value"], method, tone[method], told, test["low"], test["high"], strong)
        )
    if len(dots) < 2:
        return None
    ends = [end for dot in dots for end in (dot.low, dot.y, dot.high) if end is not None]
    axes = logarithmic([dot.x for dot in dots]), linear(ends)
    best = front([(dot.x, dot.y) for dot in dots], found["higher_is_better"])
    steps = _staircase(best)
    return picture(
        name,
        f"{found['metric']} against {title}",
        _FRONT if len(best) > 1 else f"{_winner(dots, best)} beats all others in both",
        (title, f"test {found['metric']}"),
        axes,
        dots,
        [Path(steps, "#c9ced2", dashed=True)] if len(best) > 1 else [],
    )


def _winner(dots: list[Dot], best: list[tuple[float, float]]) -> str:
    return next(dot.name for dot in dots if (dot.x, dot.y) == best[0])


def _staircase(best: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is reached at each cost: level until the next one."""
    steps = best[:1]
    for (_, before), (cost, value) in itertools.pairwise(best):
        steps += [(cost, before), (cost, value)]
    return steps


def _forgetting(found: Found, tone: Mapping[str, str]) -> Picture | None:
    """What the base forgot, against what the task gained over the head alone, or over nothing."""
    floor, over = _floor(found)
    dots = []
    for i, row in _shown(found):
        one = row["forgetting"]
        if not one or one["measure"] is None:
            continue
        gain = row["test"]["value"] - floor
        method = named(row, found)
        told = f"{method}: gained {numbers.metric(gain)}, forgot {numbers.metric(one['adapted'])}"
        strong = i == found["verdict"]["choice"]
        dots.append(Dot(gain, one["adapted"], method, tone[method], told, strong=strong))
    if len(dots) < 2:
        return None
    measure = next(
        row["forgetting"]["measure"] for _, row in _shown(found)
        if row["forgetting"] and row["forgetting"]["measure"]
    )  # fmt: skip
    return picture(
        "forgetting",
        "Forgetting against gain",
        "with the adapter on; with it off all are at 0",
        (f"{found['metric']} gained over {over}", measure),
        (linear([dot.x for dot in dots]), linear([0.0, *(dot.y for dot in dots)])),
        dots,
    )


def _floor(found: Found) -> tuple[float, str]:
    rows = [row for _, row in _shown(found)]
    alone = [row for row in rows if row["kind"] == "head" or row["method"] == "head"]
    head = next(iter(alone), None)
    if head is not None:
        return head["test"]["value"], "the head alone"
    base = next((row for row in found["rows"] if row["kind"] == "base" and row["test"]), None)
    return (base["test"]["value"], "the untrained base") if base else (0.0, "zero")


def _curves(found: Found, tone: Mapping[str, str]) -> Picture | None:
    dots, paths = [], []
    for i, row in _shown(found):
        curve = [one for one in row["curve"] if one["value"] is not None]
        if len(curve) < 2:
            continue
        method = named(row, found)
        paths.append(Path([(one["rows"], one["value"]) for one in curve], tone[method]))
        for n, one in enumerate(curve):
            name = method if n == len(curve) - 1 else ""
            told = f"{method}, {one['rows']:,} rows: {numbers.metric(one['value'])}"
            strong = i == found["verdict"]["choice"]
            dots.append(Dot(one["rows"], one["value"], name, tone[method], told, strong=strong))
    if not dots:
        return None
    axes = logarithmic([dot.x for dot in dots]), linear([dot.y for dot in dots])
    return picture(
        "curves",
        "Learning curves",
        "by rows of train, at the same steps and learning rate",
        ("rows of train", f"test {found['metric']}"),
        axes,
        dots,
        paths,
    )
