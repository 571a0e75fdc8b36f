"""The report's charts, as Plotly figures written in JSON that is safe inside a page.

Names come from models and data. Plotly reads a label as a little HTML and a hover text as a little
template, and a page ends a script at `</script>` wherever it stands; so every name passes `label`,
no name enters a template, and the JSON leaves no angle bracket behind.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from trimtab.compare import numbers
from trimtab.compare.blocks import Kind, Layout

INK, MUTED, LINE = "#23282d", "#5d6771", "#e6e8ea"
TEAL, RUST, PALE = "#1f6f78", "#b4542f", "#b9cfd1"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

MOST_POINTS = 1000  # a screen has no more columns than this to draw in
SMOOTH_FROM = 40  # with fewer points a running mean hides more than it shows
LABEL_LENGTH = 36  # letters that fit on a phone
PANEL, CAPTION = 56, 22  # heights of one kind's panel and of the words above its bars, in pixels


def label(name: str) -> str:
    """A name as Plotly shows it letter for letter; the middle of a long one is left out."""
    if len(name) > LABEL_LENGTH:
        half = LABEL_LENGTH // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return html.escape(name, quote=False)


def as_json(figure: Any) -> str:
    """A figure as JSON that may stand inside a script element."""
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": " ", "\u2029": " "}
    return figure.to_json().translate(str.maketrans(escapes))


def losses(
    training: Sequence[tuple[int, float]], evaluations: Sequence[tuple[int, float, float]]
) -> Any:
    """Training loss, with its running mean where it is dense, and validation loss."""
    points = thin(training)
    smooth = len(points) >= SMOOTH_FROM
    figure = _figure(height=310, margin={"t": 36}, showlegend=bool(smooth or evaluations))
    if points:
        figure.add_trace(_line(points, "training", PALE if smooth else TEAL))
    if smooth:
        figure.add_trace(_line(running_mean(points), "running mean", TEAL))
    if evaluations:
        validation = [(step, loss) for step, loss, _ in evaluations]
        figure.add_trace(_line(validation, "validation", RUST, mode="lines+markers"))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss")
    _give_room(figure, [value for _, value, *_ in (*points, *evaluations)])
    return figure


def quality(evaluations: Sequence[tuple[int, float, float]], metric: str) -> Any:
    """The metric on the validation split."""
    points = [(step, value) for step, _, value in evaluations]
    figure = _figure(height=310, margin={"t": 36})
    figure.add_trace(_line(points, label(metric), RUST, mode="lines+markers"))
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=f"validation {label(metric)}")
    _give_room(figure, [value for _, value in points])
    return figure


def _give_room(figure: Any, values: Sequence[float]) -> None:
    """Around values that are all but the same, a tenth of them: Plotly would take one to each
    side."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if values and high - low < 0.01 * abs(high):
        room = 0.1 * abs(high)
        figure.update_yaxes(range=[low - room, high + room])


def inside(layout: Layout) -> Any:
    """One panel for each kind of site, one bar for each block; the panels share their scale."""
    height = PANEL * len(layout.inside)
    figure = _panels(len(layout.inside), height)
    peak = max(max(kind.parameters) for kind in layout.inside) or 1
    for row, kind in enumerate(layout.inside, start=1):
        figure.add_trace(_blocks_of(kind, layout.blocks), row=row, col=1)
        caption = _caption(kind.name, kind.total)
        figure.add_annotation(**caption, x=0, xref="x domain", y=1, yref="y domain", row=row, col=1)
    first, last = layout.blocks[0], layout.blocks[-1]
    # Room for six blocks at least: a single bar would fill the page from side to side.
    ends = [first - 0.6, max(last, first + 5) + 0.6]
    figure.update_xaxes(range=ends, tickvals=_some(layout.blocks))
    figure.update_xaxes(title_text="block", row=len(layout.inside), col=1)
    figure.update_yaxes(range=[0, peak], tickvals=[0, peak], tickformat=".3~s")
    figure.add_annotation(
        **_axis_title("trained parameters"), textangle=-90, x=0, xshift=-62, y=0.5, yanchor="middle"
    )
    return figure


def outside(layout: Layout) -> Any:
    """One bar for each site outside the blocks, the largest first."""
    import plotly.graph_objects as go

    figure = _figure(height=64 + 46 * len(layout.outside), margin={"l": 26}, bargap=0.66)
    names, values = zip(*layout.outside, strict=True)
    rows = list(range(len(names)))
    figure.add_trace(
        go.Bar(
            x=values,
            y=rows,
            orientation="h",
            marker_color=TEAL,
            customdata=[label(name) for name in names],
            hovertemplate="%{customdata}<br>%{x:,} parameters<extra></extra>",
        )
    )
    for row, name, number in zip(rows, names, values, strict=True):
        figure.add_annotation(**_caption(name, number), x=0, y=row - 0.2)
    figure.update_xaxes(title_text="trained parameters", tickformat=",", nticks=5)
    figure.update_yaxes(title_text="site", showticklabels=False, showgrid=False)
    figure.update_yaxes(range=[len(rows) - 0.5, -0.75])
    return figure


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` points: the mean of each run of neighbours, at its last step."""
    run = math.ceil(len(points) / MOST_POINTS) or 1
    runs = [points[i : i + run] for i in range(0, len(points), run)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in runs]


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean of each point's neighbours, a twentieth of all points to either side."""
    reach = max(1, len(points) // 20)
    means = []
    for i, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, i - reach) : i + reach + 1]]
        means.append((step, sum(near) / len(near)))
    return means


def _figure(*, height: int, margin: dict[str, int] | None = None, **layout: Any) -> Any:
    import plotly.graph_objects as go

    return _styled(go.Figure(), height=height, margin=margin, **layout)


def _styled(figure: Any, *, height: int, margin: dict[str, int] | None, **layout: Any) -> Any:
    layout = {"showlegend": False} | layout
    figure.update_layout(
        template="none",
        autosize=True,
        height=height,
        margin={"l": 58, "r": 10, "t": 10, "b": 46} | (margin or {}),
        font={"family": FONT, "size": 12, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font_color": INK},
        hoverlabel={"bgcolor": "white", "bordercolor": LINE, "font_color": INK},
        dragmode=False,  # a finger that scrolls the page must not zoom a chart
        **layout,
    )
    grid = {"gridcolor": LINE, "zeroline": False, "fixedrange": True, "linecolor": LINE}
    text = {"tickfont": {"color": MUTED, "size": 11}, "title_font": {"color": MUTED, "size": 12}}
    figure.update_xaxes(**grid, **text, showgrid=False, showline=True, title_standoff=8)
    figure.update_yaxes(**grid, **text, title_standoff=8)
    return figure


def _panels(rows: int, height: int) -> Any:
    from plotly.subplots import make_subplots

    spacing = CAPTION / height if rows > 1 else 0
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=spacing)
    margin = {"l": 66, "t": CAPTION}
    return _styled(figure, height=height + 46 + CAPTION, margin=margin, bargap=0.3)


def _line(points: Sequence[tuple[int, float]], name: str, color: str, mode: str = "lines") -> Any:
    import plotly.graph_objects as go

    steps, values = zip(*points, strict=True)
    return go.Scatter(
        x=steps,
        y=values,
        name=name,
        mode=mode,
        line={"color": color, "width": 2},
        marker={"color": color, "size": 7},
        hovertemplate="step %{x:,}: %{y:.4g}",
    )


def _blocks_of(kind: Kind, blocks: Sequence[int]) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=blocks,
        y=kind.parameters,
        marker_color=TEAL,
        customdata=[label(kind.name)] * len(blocks),
        hovertemplate="block %{x}, %{customdata}<br>%{y:,} parameters<extra></extra>",
    )


def _caption(name: str, number: int) -> dict[str, Any]:
    """The words above a bar: what it is, and how much."""
    return {
        "text": f"{label(name)}  <b>{numbers.count(number)}</b>",
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "bottom",
        "font": {"size": 12, "color": INK},
    }


def _axis_title(text: str) -> dict[str, Any]:
    """A title for the axes of all panels, which Plotly only gives to each."""
    paper = {"xref": "paper", "yref": "paper", "xanchor": "left"}
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": MUTED}} | paper


def _some(blocks: Sequence[int]) -> list[int]:
    """At most a dozen of the blocks' numbers, evenly spaced."""
    return list(blocks[:: math.ceil(len(blocks) / 12)])
