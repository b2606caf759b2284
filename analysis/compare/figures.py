"""The plots of a comparison: overlaid fronts (plotly and matplotlib), and the shares of the resamples (plotly).

The colours are from Okabe and Ito (2008). Methods differ in colour, marker and dashes.
"""

import html
import json
import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from matplotlib.figure import Figure

from analysis.compare.attainment import Staircase
from analysis.compare.comparison import Comparison, surfaces
from analysis.compare.verdict import THRESHOLD
from analysis.figures import parts
from analysis.figures.interactive import FONT

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = (("circle", "o"), ("diamond", "D"), ("square", "s"), ("triangle-up", "^"), ("cross", "P"))  # plotly, mpl
DASHES = (("solid", "-"), ("dash", "--"), ("dashdot", "-."), ("dot", ":"))


@dataclass(frozen=True)
class Style:
    """Colour, marker and dashes of one method, for plotly and matplotlib."""

    color: str
    symbol: str
    mpl_symbol: str
    dash: str
    mpl_dash: str


def style(index: int) -> Style:
    """Return the style of the method at a position; the first 60 are distinct."""
    marker, dash = MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]
    return Style(COLORS[index % len(COLORS)], *marker, *dash)


def figures(compared: Comparison) -> dict[str, Any]:
    """Return the plots as a dict: id of the HTML element -> plotly figure as JSON; empty if there is no point."""
    if (span := x_range(compared)) is None:
        return {}
    plots = {"fronts": _fronts(compared, *span)}
    if any(len(found.above) for found in compared.verdicts):
        plots["shares"] = _shares(compared, *span)
    return {name: json.loads(pio.to_json(figure) or "") for name, figure in plots.items()}


def x_range(compared: Comparison) -> tuple[float, float] | None:
    """Return the ends of the axis of MACs in millions; None if no study has a point."""
    macs = [float(x) for sampled in compared.sampled for run in sampled.runs for x in run.macs]
    if not macs:
        return None
    return min(macs) / 1e6 / 1.25, max([*macs, compared.limit or 0]) / 1e6 * 1.25


def _line(corners: Staircase, end: float) -> tuple[list[float], list[float]]:
    """Return x (millions of MACs) and y (%) of the corners, prolonged to `end`, the last number of MACs."""
    x, y = corners.macs / 1e6, 100 * corners.accuracy
    if len(x) and end / 1e6 > x[-1]:
        x, y = np.append(x, end / 1e6), np.append(y, y[-1])
    return x.tolist(), y.tolist()


def _end(compared: Comparison) -> float:
    return compared.limit or max(float(x) for s in compared.sampled for run in s.runs for x in run.macs)


def _fronts(compared: Comparison, low: float, high: float) -> go.Figure:
    figure, end = go.Figure(), _end(compared)
    for index, (method, sampled) in enumerate(zip(compared.methods, compared.sampled, strict=True)):
        look, name = style(index), html.escape(f"{method.key}: {method.label}")
        drawn = {surface: corners for surface, (_, corners) in surfaces(sampled).items() if len(corners.macs)}
        for surface, corners in drawn.items():
            main = surface in ("front", "median")
            x, y = _line(corners, end)
            n, size = len(corners.macs), 8 if main else 4
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines+markers",
                line={"color": look.color, "width": 2.4 if main else 1, "dash": look.dash, "shape": "hv"},
                marker={"symbol": look.symbol, "color": look.color, "size": [size] * n + [0] * (len(x) - n)},
                name=name,
                legendgroup=method.key,
                showlegend=surface == next(iter(drawn)),
                hovertemplate=f"<b>%{{fullData.name}}</b> ({surface})<br>"
                "%{y:.1f} % with up to %{x:.3g} M MACs<extra></extra>",
            )
    _lay_out(figure, compared, low, high, "validation macro accuracy (%)")
    return figure


def _shares(compared: Comparison, low: float, high: float) -> go.Figure:
    figure = go.Figure()
    for index, found in enumerate(compared.verdicts, start=1):
        if not len(found.above):
            continue
        look, name = style(index), f"{found.first} above {found.second}"
        x = (found.edges / 1e6).tolist()
        y = (100 * np.append(found.above, found.above[-1])).tolist()
        line = {"color": look.color, "width": 2, "dash": look.dash, "shape": "hv"}
        text = f"{name}: %{{y:.0f}} % of the resamples<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hovertemplate=text)
    _lay_out(figure, compared, low, high, "share of the resamples (%)")
    figure.update_yaxes(range=[-4, 104], tickvals=[0, 5, 25, 50, 75, 95, 100])
    for share in (THRESHOLD, 1 - THRESHOLD):
        figure.add_hline(100 * share, line={"color": parts.INK, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True)
    return figure


def _lay_out(figure: go.Figure, compared: Comparison, low: float, high: float, title: str) -> None:
    figure.update_layout(
        font={"family": FONT, "size": 13, "color": parts.INK},
        plot_bgcolor="white",
        paper_bgcolor="white",
        margin={"l": 56, "r": 14, "t": 28, "b": 50},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        hovermode="closest",
    )
    marks = parts.ticks(low, high)
    common = {"gridcolor": parts.GRID, "linecolor": parts.INK, "ticks": "outside", "zeroline": False}
    span = [math.log10(low), math.log10(high)]
    names = [f"{mark:g}" for mark in marks]
    text = "MACs (millions, log)"
    figure.update_xaxes(type="log", range=span, title_text=text, tickvals=marks, ticktext=names, **common)
    figure.update_yaxes(title_text=title, **common)
    if compared.limit:
        limit = compared.limit / 1e6
        line = {"color": parts.LIMIT, "width": 1.5, "dash": "dash"}
        figure.add_shape(type="line", x0=limit, x1=limit, y0=0, y1=1, yref="paper", line=line)
        place = {"x": math.log10(limit), "xshift": -3, "xanchor": "right", "y": 0, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=f"limit {limit:g} M", font={"color": parts.LIMIT}, showarrow=False, **place)


def png(compared: Comparison) -> bytes:
    """Return the overlaid fronts as a PNG of 1600 x 1000 pixels; without a point, it has axes only."""
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    plot = figure.add_subplot()
    span = x_range(compared)
    for index, (method, sampled) in enumerate(zip(compared.methods, compared.sampled, strict=True)):
        look = style(index)
        drawn = {surface: corners for surface, (_, corners) in surfaces(sampled).items() if len(corners.macs)}
        for surface, corners in drawn.items():
            main = surface in ("front", "median")
            name = f"{method.key}: {method.label}" if surface == next(iter(drawn)) else None
            line = {"color": look.color, "ls": look.mpl_dash, "lw": 1.8 if main else 0.7}
            line |= {"marker": look.mpl_symbol, "ms": 5 if main else 2.5, "markevery": list(range(len(corners.macs)))}
            plot.plot(*_line(corners, _end(compared)), drawstyle="steps-post", label=name, **line)
    low, high = span or (0.1, 100.0)
    marks = parts.ticks(low, high)
    plot.set(xscale="log", xlim=(low, high), xlabel="MACs (millions, log)", ylabel="validation macro accuracy (%)")
    plot.set_xticks(marks, [f"{mark:g}" for mark in marks])
    plot.set_xticks([], minor=True)
    if compared.limit:
        limit = compared.limit / 1e6
        plot.axvline(limit, color=parts.LIMIT, ls="--", lw=1.1)
        place = {"transform": plot.get_xaxis_transform(), "ha": "right", "va": "top", "fontsize": 8.5}
        plot.text(limit * 0.98, 0.985, f"limit {limit:g} M", color=parts.LIMIT, **place)
    title = "best accuracy up to each number of MACs" + (
        "; thick: median, thin: best and worst surface" if compared.n_runs > 1 else ""
    )
    plot.set_title(title if span else "no feasible point yet", fontsize=10)
    plot.grid(color=parts.GRID, lw=0.7)
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
    if span:
        for text in plot.legend(loc="lower right", fontsize=8, framealpha=0.9).get_texts():
            text.set_parse_math(False)
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
