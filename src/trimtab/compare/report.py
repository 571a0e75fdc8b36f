"""The report of one training run: a single HTML file that opens offline and prints well.

Charts and their library are inside the file, so that a report sent by mail or found in ten years
still shows what it showed. The page forbids itself every request (its content security policy),
and whatever comes from data, models or names is text in it, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compare import blocks, charts, numbers
from trimtab.core.counts import size
from trimtab.evaluate.bootstrap import Interval
from trimtab.store.files import write_text

BASELINES = {"base": "base, as loaded", "head": "head only"}  # how their rows are called
LONGEST_TEXT = 500  # letters of an example: enough to recognise it


@dataclass(frozen=True)
class Row:
    """One line of the table: the base, a baseline, or the adapted model.

    `difference` is the adapted model minus this row, paired on the same test examples.
    """

    name: str
    validation: Interval | None
    test: Interval | None
    trainable: int
    seconds: float | None
    bytes: int | None
    difference: Interval | None = None


@dataclass(frozen=True)
class Change:
    """An example that the adapted model gained or lost against the reference row."""

    text: str
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class Report:
    """What a run has to tell. The last of `rows` is the adapted model."""

    title: str
    task: str
    metric: str
    method: str
    model: str
    summary: str
    rows: Sequence[Row]
    losses: Sequence[tuple[int, float]]  # step, training loss
    evaluations: Sequence[tuple[int, float, float]]  # step, validation loss, validation metric
    sites: Sequence[tuple[str, int]]  # name, trained parameters
    reference: str  # what gained and lost are against: "head only"
    gained: Sequence[Change]
    lost: Sequence[Change]
    gained_total: int
    lost_total: int
    facts: Mapping[str, str]
    notes: Sequence[str]
    total: int | None = None  # parameters of the whole model, for shares


@dataclass(frozen=True)
class Scale:
    """The axis that all pictures of intervals share, mapped to 0 to 100."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def write_report(report: Report, path: Path) -> None:
    """Write the page whole or not at all: a reader never opens half a report."""
    write_text(Path(path), render(report))


def render(report: Report) -> str:
    """The page as text; the same report gives the same page."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    layout = blocks.arrange(report.sites)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            layout=layout,
            figures={name: Markup(text) for name, text in _figures(report, layout).items()},
            plotly=Markup(get_plotlyjs()),
            scale=scale([row.test for row in report.rows if row.test]),
            share=numbers.share,
        )
    )


def environment() -> Any:
    """What all pages are made with: whatever comes from data is text in them, never markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "metric": numbers.metric,
        "bounds": numbers.bounds,
        "count": numbers.count,
        "size": size,
        "duration": numbers.duration,
        "excerpt": excerpt,
    }
    made.tests["finite"] = is_finite
    return made


def summary_sentence(
    *,
    method: str,
    model: str,
    metric: str,
    rows: Sequence[Row],
    total: int | None = None,
    greater_is_better: bool = True,
) -> str:
    """The report's first paragraph, in plain words; the last of `rows` is the adapted model."""
    *references, adapted = rows
    split, found = ("test", adapted.test) if adapted.test else ("validation", adapted.validation)
    of_model = f" ({numbers.share(adapted.trainable, total)} of the model)" if total else ""
    trained = f"{numbers.count(adapted.trainable)} trained parameters{of_model}"
    if found is None:
        return f"{method} adapted {model} with {trained}. It was not evaluated."
    sentences = [
        f"{method} on {model} reaches a {split} {metric} of {numbers.metric(found.value)} "
        f"(95 % interval {numbers.bounds(found)}, {numbers.count(found.n)} examples) "
        f"with {trained}."
    ]
    for row in references:
        if row.difference is not None:
            sentences.append(_against(row.name, row.difference, greater_is_better))
    return " ".join(sentences)


def excerpt(text: str) -> str:
    """The beginning of a long example."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1].rstrip() + "…"


def scale(intervals: Sequence[Interval]) -> Scale | None:
    """An axis around all intervals, with round ends; None where there is nothing to draw."""
    drawn = [found for found in intervals if is_finite(found)]
    if not drawn:
        return None
    ends = [end for found in drawn for end in (found.low, found.value, found.high)]
    low, high = min(ends), max(ends)
    step = 10 ** math.floor(math.log10(high - low)) / 2 if high > low else 0.05
    return Scale(math.floor(low / step) * step, (math.floor(high / step) + 1) * step)


def is_finite(found: Interval | None) -> bool:
    """Whether there is an interval that can be drawn."""
    return found is not None and all(map(math.isfinite, (found.low, found.value, found.high)))


def _against(name: str, difference: Interval, greater_is_better: bool) -> str:
    change = f"{numbers.metric(difference.value, signed=True)} "
    change += f"{numbers.bounds(difference, signed=True)}"
    if difference.includes_zero:
        return (
            f"Against “{name}” the difference is {change}: the interval includes zero, so these "
            "examples do not show which of the two is better."
        )
    better = (difference.value > 0) == greater_is_better
    return f"Against “{name}” it is {'better' if better else 'worse'}: {change}."


def _figures(report: Report, layout: blocks.Layout) -> dict[str, str]:
    """The charts for which there is something to draw, as JSON, by the id of their place."""
    drawn: dict[str, Any] = {}
    if report.losses or report.evaluations:
        drawn["losses"] = charts.losses(report.losses, report.evaluations)
    if report.evaluations:
        drawn["quality"] = charts.quality(report.evaluations, report.metric)
    if layout.inside:
        drawn["inside"] = charts.inside(layout)
    if layout.outside:
        drawn["outside"] = charts.outside(layout)
    return {name: charts.as_json(figure) for name, figure in drawn.items()}
