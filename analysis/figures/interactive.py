"""The interactive plots of the HTML report (plotly): accuracy over MACs, and accuracy over bytes."""

import html
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import summary
from analysis.figures import parts
from analysis.findings import markers
from analysis.results import Study, take

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif"


def interactive(study: Study, axis: parts.Axis) -> go.Figure:
    """Return the plot of validation accuracy (%) over `axis` (MACs or bytes).

    The style of a marker shows the role of its point (front, dominated, ...). Thin lines connect the prune steps of a
    trial. Lines show the limit and the baseline. In the traces of networks (`meta` "networks"), the `customdata` of a
    marker is the row of its network in `parts.measured`; the script of the page adds the texts under the mouse pointer.
    The last trace is empty: the script fills it with the trial under the pointer.
    """
    points = parts.measured(study)
    figure = go.Figure()
    x, y = (_none_for_nan(values) for values in parts.trajectories(points, axis))
    thin = {"color": parts.TRAJECTORY, "width": 1.2, "simplify": False}
    figure.add_scatter(x=x, y=y, mode="lines", name="prune trajectory", line=thin, hoverinfo="skip")
    for role, look in parts.ROLES.items():
        chosen = take(points, points["role"] == role).sort_values(by="macs", kind="stable")
        if chosen.empty:
            continue
        if role == "front":
            _add_front(figure, study, chosen, axis)
        x, y = parts.coordinates(chosen, axis)
        edge = {"color": look.color, "width": 1.4}
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=look.label,
            marker={"symbol": look.symbol, "size": look.size, "color": look.fill, "line": edge},
            meta="networks",
            customdata=chosen.index.tolist(),
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 0.12}},
            hovertemplate="%{text}<extra></extra>",
            hoverlabel={"bgcolor": "white", "bordercolor": look.color, "align": "left"},
        )
    for look, x, y in parts.tests(study, points, axis):
        edge = {"color": look.color, "width": 1.4}
        marker = {"symbol": look.symbol, "size": look.size, "color": look.fill, "line": edge}
        text = f"{look.label}: %{{y:.1f}} %<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="markers", name=look.label, marker=marker, hovertemplate=text)
    if axis.column == "macs" and (others := markers.markers(study)):
        look = parts.REFERENCE
        figure.add_scatter(
            x=[one.macs / axis.scale for one in others],
            y=[one.accuracy for one in others],
            mode="markers",
            name=look.label,
            marker={"symbol": look.symbol, "size": look.size, "color": look.color, "line": {"width": 2}},
            text=[html.escape(one.text).replace("; ", "<br>") for one in others],
            hovertemplate="%{text}<extra></extra>",
        )
    ring = {"symbol": "circle-open", "size": 15, "color": parts.INK}
    path = {"mode": "lines+markers", "marker": ring, "line": {"color": parts.INK, "width": 2}}
    figure.add_scatter(x=[], y=[], name="trial", hoverinfo="skip", showlegend=False, **path)
    _lay_out(figure, study, points, axis)
    return figure


def _add_front(figure: go.Figure, study: Study, chosen: pd.DataFrame, axis: parts.Axis) -> None:
    """Add error bars, rings and a staircase line to `figure`, for `chosen`, the points of the front.

    The rings are small circles, one at the accuracy of each seed. A study without replicates has no rings, because its
    points are not means over seeds. Only the plot over MACs has the staircase line: along the front, accuracy increases
    with MACs, but not always with bytes.
    """
    x, y = parts.coordinates(chosen, axis)
    below, above = parts.errors_percent(study, chosen)
    if above.any():
        pale = "rgba(213,94,0,0.45)"
        bars = {"array": above.tolist(), "arrayminus": below.tolist(), "color": pale, "thickness": 1.2, "width": 3}
        tick = {"symbol": "line-ns", "size": 12, "line": {"color": pale, "width": 1.4}}
        name = parts.errors_label(study)
        figure.add_scatter(x=x, y=y, error_y=bars, mode="markers", marker=tick, name=name, hoverinfo="skip")
    seeds = parts.coordinates(parts.single_seeds(study, chosen), axis)
    if seeds[0]:
        ring = {"symbol": "circle-open", "size": 5, "color": parts.ROLES["front"].color, "line": {"width": 1}}
        figure.add_scatter(x=seeds[0], y=seeds[1], mode="markers", marker=ring, name="each seed", hoverinfo="skip")
    if axis.column == "macs":
        x, y = parts.step_line(chosen, axis)
        line = {"color": parts.FRONT, "width": 2.2, "shape": "hv"}
        figure.add_scatter(x=x, y=y, mode="lines", name="front line", line=line, hoverinfo="skip", showlegend=False)


def _lay_out(figure: go.Figure, study: Study, points: pd.DataFrame, axis: parts.Axis) -> None:
    """Set axes, fonts and legend of the plot; add a labelled line for the limit and one for the baseline."""
    low, high = parts.x_range(study, points, axis)
    marks = parts.ticks(low, high)
    shapes: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    label = {"showarrow": False, "borderpad": 1}
    if axis.limit:
        line = {"color": parts.LIMIT, "width": 1.5, "dash": "dash"}
        ends = {"x0": axis.limit, "x1": axis.limit, "y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({"type": "line", "name": "limit", "line": line, **ends})
        place = {"x": math.log10(axis.limit), "xshift": -3, "xanchor": "right"}
        place |= {"y": 0, "yref": "paper", "yanchor": "bottom"}
        font = {"color": parts.LIMIT, "size": 12}
        labels.append({"text": axis.limit_label, "name": "limit", "font": font, **place, **label})
    if (found := summary.baseline(study)) is not None:
        height = 100 * found[1]
        line = {"color": parts.BASELINE, "width": 1.8, "dash": "dot"}
        ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": height, "y1": height}
        shapes.append({"type": "line", "name": "baseline", "line": line, **ends})
        above = parts.baseline_label_above(study, points)
        place = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 3}
        place |= {"y": height, "yanchor": "bottom" if above else "top"}
        font = {"color": parts.BASELINE, "size": 12}
        text = f"baseline {summary.percent(found[1])} %"
        labels.append({"text": text, "name": "baseline", "font": font, **place, **label})
    font = {"family": FONT, "size": 13, "color": parts.INK}
    figure.update_layout(
        font=font,
        hoverlabel={"font": {**font, "size": 12}},
        plot_bgcolor="white",
        paper_bgcolor="white",
        margin={"l": 56, "r": 14, "t": 28, "b": 50},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "itemsizing": "trace"},
        showlegend=axis.column == "macs",  # the plot over bytes has the same legend
        hovermode="closest",
        shapes=shapes,
        annotations=labels,
    )
    common = {"gridcolor": parts.GRID, "linecolor": parts.INK, "ticks": "outside", "zeroline": False}
    span = [math.log10(low), math.log10(high)]
    names = [f"{mark:g}" for mark in marks]
    figure.update_xaxes(type="log", range=span, title_text=axis.title, tickvals=marks, ticktext=names, **common)
    figure.update_yaxes(range=list(parts.y_range(study, points)), title_text=parts.y_title(study), **common)


def _none_for_nan(values: list[float]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values]
