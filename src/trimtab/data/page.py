"""What was found in a data set, as one HTML file that opens offline and sends nothing anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.compare import charts
from trimtab.data.check import Findings, Lengths
from trimtab.store.files import write_text

_RANGE = "%{customdata[0]:,.4g} to %{customdata[1]:,.4g}: %{y:,} rows<extra></extra>"
MOST_LABELS = 60  # bars that one can still read


def write(found: Findings, task: str, path: Path) -> None:
    """The page whole or not at all."""
    write_text(path, render(found, task))


def render(found: Findings, task: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(charts.__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {name: Markup(charts.as_json(figure)) for name, figure in _figures(found).items()}
    return environment.from_string(_PAGE).render(
        found=found, task=task, figures=figures, plotly=Markup(get_plotlyjs())
    )


def _figures(found: Findings) -> dict[str, Any]:
    drawn = {}
    if any(split.labels for split in found.splits):
        drawn["labels"] = balance(found)
    for one in found.lengths:
        drawn[f"length of {one.column}"] = histogram(one)
    return drawn


def balance(found: Findings) -> Any:
    """The share of each label in each split, the largest in train first."""
    import plotly.graph_objects as go

    counts = {name: n for split in found.splits for name, n in split.labels.items()}
    names = list(found.splits[0].labels) + [n for n in counts if n not in found.splits[0].labels]
    names = names[:MOST_LABELS]
    colors = (charts.TEAL, charts.RUST, charts.PALE)
    figure = go.Figure()
    for split, color in zip(found.splits, colors, strict=False):
        if split.labels:
            figure.add_trace(
                go.Bar(
                    x=[split.labels.get(name, 0) / max(split.rows, 1) for name in names],
                    y=list(range(len(names))),
                    orientation="h",
                    name=split.name,
                    marker_color=color,
                    customdata=[[charts.label(name), split.labels.get(name, 0)] for name in names],
                    hovertemplate="%{customdata[0]}: %{customdata[1]:,} rows, %{x:.1%}",
                )
            )
    _style(figure, height=90 + 26 * len(names), showlegend=True)
    ticks = {"tickvals": list(range(len(names))), "ticktext": [charts.label(n) for n in names]}
    figure.update_yaxes(**ticks, range=[len(names) - 0.5, -0.5], automargin=True)
    figure.update_xaxes(title_text="share of the split's rows", tickformat=".0%")
    return figure


def histogram(one: Lengths) -> Any:
    """How many rows are how long, and where the model's limit is."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Bar(
            x=[(low + high) / 2 for low, high, _ in one.histogram],
            y=[n for _, _, n in one.histogram],
            width=[high - low for low, high, _ in one.histogram],
            customdata=[[low, high] for low, high, _ in one.histogram],
            hovertemplate=_RANGE,
            marker_color=charts.TEAL,
        )
    )
    _style(figure, height=260, showlegend=False, bargap=0)
    if one.limit is not None and one.limit <= one.histogram[-1][1]:
        figure.add_vline(one.limit, line={"color": charts.RUST, "dash": "dash"})
    figure.update_xaxes(title_text=one.unit)
    figure.update_yaxes(title_text="rows")
    return figure


def _style(figure: Any, **layout: Any) -> None:
    figure.update_layout(
        template="none",
        autosize=True,
        margin={"l": 60, "r": 10, "t": 36, "b": 46},
        font={"family": charts.FONT, "size": 12, "color": charts.INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        dragmode=False,
        **layout,
    )
    figure.update_xaxes(gridcolor=charts.LINE, zeroline=False, fixedrange=True)
    figure.update_yaxes(gridcolor=charts.LINE, zeroline=False, fixedrange=True)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ found.source }}</title>
{% include "style.html.j2" %}
<style>tbody tr:last-child :is(th, td) { font-weight: 400 }</style>
</head>
<body>
<main>
<p class="kicker">Trimtab data check</p>
<h1>{{ found.source }}</h1>
<p class="summary">Read for {{ task }}.
{% if found.broken %}{{ "{:,}".format(found.broken) }} rows cannot be used.{% else %}Every row can be
used.{% endif %}</p>
{% if found.problems or found.notes %}
<aside class="notes"><h3>Notes</h3><ul>
{% for problem in found.problems %}<li>A run would refuse this: {{ problem }}</li>{% endfor %}
{% for note in found.notes %}<li>{{ note }}</li>{% endfor %}
</ul></aside>
{% endif %}
<section><h2>Columns</h2><div class="scroll"><table>
<thead><tr><th></th><th scope="col">taken for</th><th scope="col">in the data</th></tr></thead>
<tbody>
{% for one in found.columns %}
<tr><th scope="row">{{ one.name }}</th><td>{{ one.kind }}</td><td>{{ one.found or "–" }}</td></tr>
{% endfor %}
</tbody></table></div></section>
<section><h2>Splits</h2><div class="scroll"><table>
<thead><tr><th></th><th scope="col">rows</th><th scope="col">broken</th><th scope="col">duplicates
</th><th scope="col">also in train</th><th scope="col">near empty</th></tr></thead>
<tbody>
{% for one in found.splits %}
<tr><th scope="row">{{ one.name }}{% if one.made %}, held out{% endif %}</th>
{% for n in (one.rows, one.faults | length, one.duplicates, one.shared, one.empty | length) %}
<td>{{ "{:,}".format(n) }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div></section>
{% for name in figures %}
<section><h2>{{ name | capitalize }}</h2><div id="figure-{{ loop.index }}"></div></section>
{% endfor %}
{% if found.rare %}
<section><h2>Under-represented in train</h2><p>
{% for name, n in found.rare.items() %}{{ name }} ({{ n }}){{ ", " if not loop.last }}{% endfor %}
</p></section>
{% endif %}
{% if found.broken %}
<section><h2>Broken rows</h2><ul>
{% for split in found.splits %}{% for fault in split.faults[:1000] %}
<li>{{ split.where }}, {{ split.unit }} {{ fault.line }}: {{ fault.reason }}</li>
{% endfor %}{% endfor %}
</ul></section>
{% endif %}
</main>
{% if figures %}
<script>{{ plotly }}</script>
<script>
{% for figure in figures.values() %}
(f => Plotly.newPlot("figure-{{ loop.index }}", f.data, f.layout, {displayModeBar: false,
responsive: true}))({{ figure }});
{% endfor %}
</script>
{% endif %}
</body>
</html>
"""  # noqa: E501
