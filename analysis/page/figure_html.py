"""The interactive plots of the HTML report (plotly): accuracy over MACs, and accuracy over bytes."""

import html
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import summary
from analysis.page import figure_parts as parts
from analysis.results import Study, take

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif"


def interactive(study: Study, axis: parts.Axis) -> go.Figure:
    """Return the plot of validation accuracy (%) over `axis` (MACs or bytes).

    The style of a marker shows the role of its point (front, dominated, ...). Thin lines connect the prune steps of a
    trial. Lines show the limit and the baseline. The `customdata` of a marker is [trial name, prune step]. The last
    trace is empty: the script of the page fills it with the trial under the mouse pointer.
    """
    points, sampled = parts.measured(study), study.prefixed("config/")
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
        records: list[dict[Any, Any]] = chosen.to_dict("records")
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=look.label,
            marker={"symbol": look.symbol, "size": look.size, "color": look.fill, "line": edge},
            customdata=[[point["trial_id"], point["step"]] for point in records],
            text=[hover_text(study, point, sampled) for point in records],
            hovertemplate="%{text}<extra></extra>",
            hoverlabel={"bgcolor": "white", "bordercolor": look.color, "align": "left"},
        )
    for look, x, y in parts.tests(study, points, axis):
        edge = {"color": look.color, "width": 1.4}
        marker = {"symbol": look.symbol, "size": look.size, "color": look.fill, "line": edge}
        text = f"{look.label}: %{{y:.1f}} %<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="markers", name=look.label, marker=marker, hovertemplate=text)
    ring = {"symbol": "circle-open", "size": 15, "color": parts.INK}
    path = {"mode": "lines+markers", "marker": ring, "line": {"color": parts.INK, "width": 2}}
    figure.add_scatter(x=[], y=[], name="trial", hoverinfo="skip", showlegend=False, **path)
    _lay_out(figure, study, points, axis)
    return figure


def hover_text(study: Study, point: dict[Any, Any], sampled: list[str]) -> str:
    """Return the hover text of a point as HTML: accuracies, sizes, trial status and configuration.

    `point` maps the columns of points.csv to the values of one point, and "role" to its role (front, dominated, ...).
    `sampled` lists the columns that have sampled configuration values (config/...).
    """
    label = parts.ROLES[point["role"]].label
    lines = [
        f"<b>trial {html.escape(point['trial_id'])}, step {point['step']}</b> ({label})",
        f"validation accuracy <b>{summary.percent(point['val_macro_avg_acc'])} %</b>{_error_text(study, point)}",
    ]
    if not summary.absent(point.get("test_macro_avg_acc")):
        groups = [name for name in point if name.startswith("test_acc/")]
        detail = ", ".join(f"{name.removeprefix('test_acc/')} {summary.percent(point[name])}" for name in groups)
        by_group = f" ({html.escape(detail)})" if detail else ""
        seeds = f", mean of {point['test_n_seeds']:.0f}" if study.replicated else ""
        lines.append(f"test accuracy {summary.percent(point['test_macro_avg_acc'])} %{seeds}{by_group}")
    if not summary.absent(refitted := point.get("refitted_test_macro_avg_acc")):
        n = f"{point['refitted_test_n_seeds']:.0f}"
        lines.append(f"refitted on all clips: test accuracy {summary.percent(refitted)} %, mean of {n}")
    epochs = f", {point['epochs']:.0f} epochs" if not summary.absent(point.get("epochs")) else ""
    lines += [
        f"{summary.millions(point['macs'])} M MACs, {summary.thousands(point['params'])} k parameters",
        f"{summary.thousands(point[study.bytes_column])} kB at {study.precision}, "
        f"sparsity {summary.percent(point['sparsity'])} %",
        f"trial status: {point['status']}{epochs}",
        "",
    ]
    for column in sampled:
        name, value = column.removeprefix("config/"), summary.value_text(point[column])
        lines.append(f"{html.escape(name)} = {html.escape(value)}")
    return "<br>".join(lines)


def _error_text(study: Study, point: dict[Any, Any]) -> str:
    """Return the uncertainty of the validation accuracy of a point, as text that is placed after the accuracy.

    It is the 95 % interval of a mean over seeds, or the binomial standard error of a single run. The text is empty if
    the uncertainty is unknown.
    """
    if study.replicated:
        n = point["n_seeds"]
        if n < 2:
            return " (one seed)" if n else ""
        return (
            f", mean of {n} seeds, sd {summary.percent(point['val_macro_avg_acc_std'])}, 95 % {summary.span(point)} %"
        )
    error = float(summary.standard_error(point["val_macro_avg_acc"], summary.validation_clips(study)))
    return f" ± {summary.percent(error)}" if math.isfinite(error) else ""


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
    low, high = parts.x_range(points, axis)
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
