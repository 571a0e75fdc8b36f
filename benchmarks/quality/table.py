"""What the runs show: one row a method and setting, beside full fine-tuning, and the picture.

The metric is the mean over seeds; intervals draw the test examples again, each with its scores of
all seeds (paired with full fine-tuning's on the same examples). A method is non-inferior where its
difference from full fine-tuning lies above -1.0 point with 95 % confidence, and was trained with as
many seeds as full fine-tuning was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rates
from runs import RESULTS, unpacked
from works import SOME, works

from trimtab.core.registry import methods
from trimtab.evaluate.bootstrap import Interval, mean_interval, paired_mean

MARGIN = 0.010
SMALL = 0.01
REFERENCE = "full"
METRICS = {work.name: work.metric for work in works()}
TAKES = {work.name: work.takes for work in works()}
ABOUT = {
    work.name: f"{work.model}, `{work.data}`, {work.metric}, {work.steps} steps" for work in works()
}


@dataclass(frozen=True)
class Row:
    """A method with its settings on one work."""

    name: str
    trained: int
    total: int
    lr: float
    seeds: tuple[int, ...]
    seconds: float
    test: Interval
    against: Interval | None
    margin: bool  # whether the metric counts right answers, of which a point is a hundredth

    @property
    def share(self) -> float:
        return self.trained / self.total

    @property
    def non_inferior(self) -> bool:
        return self.margin and self.against is not None and self.against.low > -MARGIN


def read(work: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The final runs of each row; and of rows without any why, as far as is known."""
    finals: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for path in sorted((RESULTS / work).glob("*/*.json")):
        found = json.loads(path.read_text(encoding="utf8"))
        if "failed" in found:
            failed[found["row"]] = found["failed"]
        elif "scores" in found:
            finals.setdefault(found["row"], []).append(found)
    return {name: _one_rate(runs) for name, runs in finals.items()}, failed


def _one_rate(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs with the rate of the newest search, should an older one have left others."""
    rates = {run["lr"] for run in runs}
    most = max(rates, key=lambda lr: sum(run["lr"] == lr for run in runs))
    return sorted((run for run in runs if run["lr"] == most), key=lambda run: run["seed"])


def searched(work: str) -> dict[str, tuple[float, float]]:
    """Row -> the best learning rate so far and its validation metric, from short runs."""
    return {
        row: max(found.items(), key=lambda one: one[1])
        for row, found in rates.searched(work).items()
    }


def rows(work: str) -> list[Row]:
    finals, _ = read(work)
    reference = finals.get(REFERENCE, [])
    found = [_row(name, runs, reference) for name, runs in finals.items()]
    return sorted(found, key=lambda row: -row.test.value)


def _row(name: str, runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> Row:
    scores = _pooled(runs)
    seeds = tuple(run["seed"] for run in runs)
    both = {run["seed"] for run in reference}
    against = None
    if name != REFERENCE and both and both <= set(seeds):
        against = paired_mean(
            _pooled(run for run in runs if run["seed"] in both), _pooled(reference)
        )
    first = runs[0]
    seconds = float(np.median([run["train_seconds"] for run in runs]))
    return Row(
        name,
        first["trainable"],
        first["total"],
        first["lr"],
        seeds,
        seconds,
        mean_interval(scores),
        against,
        bool(np.isin(unpacked(first["scores"]), (0, 1)).all()),
    )


def _pooled(runs: Iterable[dict[str, Any]]) -> np.ndarray:
    return np.mean([unpacked(run["scores"]) for run in runs], axis=0)


def page() -> str:
    """The table of all works as a document."""
    lines = [
        "# Quality",
        "",
        "Written by `make quality` from the runs in `benchmarks/results/quality`; a run that is",
        "not there has not been done. " + " ".join((__doc__ or "").split("\n\n")[1].split()),
        "",
        "Learning rates are chosen on validation data in short runs, from a third to three times a",
        "method's own and beyond where the best is at an edge. A row with a setting is the largest",
        "size of a method that trains less than 1 % of the parameters. Beyond the two works that",
        f"MiniLM learns it is {len(SOME)} methods, some of each kind.",
    ]
    if (RESULTS / "quality.svg").exists():
        lines += [
            "",
            "![Metric against trained parameters](../benchmarks/results/quality/quality.svg)",
        ]
    for work, about in ABOUT.items():
        lines += ["", f"## {work}", "", about + ".", "", *_lines(work)]
    lines += ["", "## Learning rates", "", *RATES, "", *rates.lines()]
    return "\n".join(lines) + "\n"


RATES = (
    "Every method was searched with runs of 100 steps on both data sets that MiniLM learns, and",
    "has one rate of its own for both. *Short by* says how far its mean validation accuracy lies",
    "below that of the best single rate: a point (0.010) at most.",
)
HEAD = ("method", "trained", "share", "lr", "seeds", "test, 95 %", "against full, 95 %", "")


def _lines(work: str) -> list[str]:
    finals, failed = read(work)
    lines = _table(rows(work)) if finals else ["No method has been trained in full here yet.", ""]
    short = {name: best for name, best in searched(work).items() if name not in finals}
    if short:
        lines += [
            "Searched in short runs, and not trained in full yet:",
            "",
            "| method | best lr | validation |",
            "|---|---|---|",
            *(f"| `{n}` | {lr:.3g} | {value:.3f} |" for n, (lr, value) in short.items()),
            "",
        ]
    begun = {name.split()[0] for name in (*finals, *short)}
    missing = [name for name in methods() if TAKES[work](name) and name not in begun]
    odd = [f"`{name}` ({_why(failed[name])})" for name in missing if name in failed]
    lines += [f"Does not apply: {', '.join(odd)}.", ""] if odd else []
    waiting = [f"`{name}`" for name in missing if name not in failed]
    return [*lines, f"Not run yet: {', '.join(waiting)}."] if waiting else lines[:-1]


def _why(failed: str) -> str:
    """The error's sentence without its kind and its advice."""
    return failed.partition(": ")[2].partition("; ")[0].partition(": ")[0]


def _table(found: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for row in found:
        against = _interval(row.against, signed=True) if row.against else "–"
        mark = "non-inferior" if row.non_inferior else ""
        cells = (
            f"`{row.name}`",
            f"{row.trained:,}",
            f"{row.share:.2%}",
            f"{row.lr:.3g}",
            str(len(row.seeds)),
            _interval(row.test),
            against,
            mark + (", under 1 %" if mark and row.share < SMALL else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _interval(found: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (f"{x:{sign}.3f}" for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def picture(path: Path) -> None:
    """The metric against trained parameters, a panel a work; intervals of 95 %."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "trimtab", "font.size": 8, "svg.fonttype": "none"}
    shown = [work for work in ABOUT if rows(work)]
    if not shown:
        return
    figure, panels = plt.subplots(
        len(shown), 1, figsize=(9, 4.2 * len(shown)), squeeze=False, layout="constrained"
    )
    for panel, work in zip(panels[:, 0], shown, strict=True):
        _panel(panel, work)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(panel: Any, work: str) -> None:
    found = rows(work)
    for row in found:
        share = 100 * row.share
        low, high = row.test.value - row.test.low, row.test.high - row.test.value
        colour = (
            "#1f6f78" if row.non_inferior else "#b4542f" if row.name == REFERENCE else "#5d6771"
        )
        panel.errorbar(
            share, row.test.value, [[low], [high]], fmt="o", color=colour, ms=4, lw=0.8, alpha=0.9
        )
    _names(panel, found)
    for row in found:
        if row.name == REFERENCE and row.margin:
            below = row.test.value - MARGIN
            panel.axhline(below, color="#b4542f", lw=0.8, ls=":", label="full less one point")
    panel.axvline(1, color="#b9cfd1", lw=0.8, ls="--", label="1 % of the parameters")
    panel.legend(loc="lower right", frameon=False, fontsize=7)
    panel.set(xscale="log", xlabel="trained parameters, % of all", ylabel=METRICS[work])
    panel.set_title(f"{work}: {ABOUT[work].replace('`', '')}", loc="left")
    panel.spines[["top", "right"]].set_visible(False)


def _names(panel: Any, found: Sequence[Row]) -> None:
    """To the right of the panel, best first, each with a line to its point."""
    ordered = sorted(found, key=lambda row: -row.test.value)
    for index, row in enumerate(ordered):
        panel.annotate(
            f"{row.name}{'' if len(row.seeds) > 1 else ' (one seed)'}",
            (100 * row.share, row.test.value),
            xytext=(1.03, 1 - (index + 0.5) / len(ordered)),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#c9d2d4",
                "lw": 0.6,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def write() -> None:
    """The table, the picture and the document."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    picture(RESULTS / "quality.svg")
    docs = Path(__file__).parents[2] / "docs" / "quality.md"
    docs.write_text(page(), encoding="utf8")
