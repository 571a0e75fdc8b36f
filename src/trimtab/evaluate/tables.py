"""What `eval` found, as tables: the same for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.evaluate.bootstrap import Interval
from trimtab.evaluate.judged import ADAPTED

NAMES = {"base": "base, as loaded", "head": "head only", ADAPTED: "adapted"}
_RATES = {
    "selection_rate": "selection rate",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
    "calibration": "expected less actual share of positives",
    "equalised_odds": "equalised odds",
}


@dataclass(frozen=True)
class Signed:
    """A difference, told with its sign."""

    found: Interval


Cell = str | Interval | Signed


@dataclass(frozen=True)
class Shown:
    """A table; where `drawn`, its second and third columns are two models on one scale."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    text: str = ""
    drawn: bool = True


def read(found: Mapping[str, Any]) -> Interval:
    """From JSON, where what is not defined is null."""
    value, low, high = (
        math.nan if found[key] is None else found[key] for key in ("value", "low", "high")
    )
    return Interval(value, low, high, found["n"])


def tables(result: Mapping[str, Any]) -> Iterator[Shown]:
    """All that was asked for, in one order."""
    for found in result.get("slices", ()):
        yield _slices(found, result["metric"])
    for found in result.get("fairness", ()):
        yield from _fairness(found)
    if found := result.get("calibration"):
        yield from _calibration(found)
    if found := result.get("robustness"):
        yield _robustness(found, result["metric"])
    if found := result.get("stereotypes"):
        yield _stereotypes(found)


def _heads(rows: list[str], *more: str) -> tuple[str, ...]:
    return ("", *(NAMES[row] for row in rows), "change, paired", *more)


def _triple(found: Mapping[str, Any], rows: list[str]) -> tuple[Cell, ...]:
    return (*(read(found[row]) for row in rows), Signed(read(found["change"])))


def _slices(found: Mapping[str, Any], metric: str) -> Shown:
    rows = [
        (_name(group["name"], group["few"]), *_triple(group, found["rows"]), f"{group['n']:,}")
        for group in found["groups"]
    ]
    text = (
        f"Of fewer than {found['few']} rows: *." if any(g["few"] for g in found["groups"]) else ""
    )
    title = f"{metric} by {found['column']}"
    return Shown(title, _heads(found["rows"], "rows"), rows, text)


def _fairness(found: Mapping[str, Any]) -> Iterator[Shown]:
    column, rows = found["column"], found["rows"]
    for rate in ("selection_rate", "true_positive_rate", "false_positive_rate", "calibration"):
        told = [
            (
                _name(group["name"], rate in group["few"]),
                *_triple({row: group[row][rate] for row in (*rows, "change")}, rows),
                f"{group['n']:,}",
            )
            for group in found["groups"]
        ]
        few = any(rate in group["few"] for group in found["groups"])
        text = f"Over fewer than {found['few']} examples, and no part of the gap: *." * few
        title = f"{_RATES[rate]} by {column}, positive: {found['positive']}"
        yield Shown(title, _heads(rows, "rows"), told, text)
    gaps = [
        (_RATES[name], *_triple(gap, rows), "widened" if gap["widened"] else "")
        for name, gap in found["gaps"].items()
    ]
    text = (
        "The largest less the smallest of the groups. Widened: by more than the paired interval "
        "leaves to chance."
    )
    yield Shown(f"gaps between the groups of {column}", _heads(rows, " "), gaps, text)


def _calibration(found: Mapping[str, Any]) -> Iterator[Shown]:
    rows = found["rows"]
    names = {"ece": f"expected calibration error, {found['bins']} bins", "brier": "Brier score"}
    told: list[tuple[Cell, ...]]
    told = [(names[name], *_triple(one, rows)) for name, one in found["metrics"].items()]
    yield Shown("calibration", _heads(rows), told, "Less is better.")
    if advice := found["temperature"]:
        told = [
            (
                NAMES[row],
                f"{one['value']:.3f}",
                read(one["ece"]),
                Signed(read(one["change"])),
                f"{one['fitted_on']:,}",
            )
            for row, one in advice.items()
        ]
        head: tuple[str, ...] = ("", "temperature", "ECE with it", "change, paired", "fitted on")
        text = "Logits divided by this temperature; the answers stay as they are."
        yield Shown("temperature that the validation split advises", head, told, text, drawn=False)
    for row in rows:
        told = [
            (
                f"{one['from']:.2f} to {one['to']:.2f}",
                f"{one['confidence']:.3f}",
                read(one["accuracy"]),
                f"{one['accuracy']['n']:,}",
            )
            for one in found["reliability"][row]
        ]
        head = ("confidence", "its mean", "share that is right", "rows")
        yield Shown(f"reliability, {NAMES[row]}", head, told, drawn=False)


def _robustness(found: Mapping[str, Any], metric: str) -> Shown:
    rows = found["rows"]
    blank = ("",) * len(rows)
    told: list[tuple[Cell, ...]] = [
        ("as given", *(read(found["as given"][row]) for row in rows), *blank)
    ]
    for change in found["changes"]:
        values = (read(change[row]["value"]) for row in rows)
        costs = (Signed(read(change[row]["cost"])) for row in rows)
        told.append((change["name"], *values, *costs))
    head = ("", *(NAMES[row] for row in rows), *(f"change, {NAMES[row]}" for row in rows))
    text = f"On {found['n']:,} rows; changes are paired with the same rows as they were given."
    return Shown(f"{metric} under changes of what is given", head, told, text)


def _stereotypes(found: Mapping[str, Any]) -> Shown:
    rows = found["rows"]
    all_ = {"name": "all", **found["all"]}
    told = [(one["name"], *_triple(one, rows), f"{one['n']}") for one in (*found["kinds"], all_)]
    text = (
        "One half: no difference. Sixty sentences show a movement of the model, never that it is "
        "free of stereotypes."
    )
    title = "share of pairs whose stereotyped sentence is likelier"
    return Shown(title, _heads(rows, "pairs"), told, text)


def _name(name: str, few: bool) -> str:
    return f"{name} *" if few else name
