"""The plots of the searched parameters: parallel coordinates, and the accuracy over each parameter (plotly)."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import summary
from analysis.figures import parts
from analysis.figures.interactive import FONT
from analysis.findings.importance import scale_of
from analysis.results import Study

LEAST = 5  # networks; with fewer, there are no plots
MOST = 2000  # networks; of more, the front and a random sample of the others are drawn
MOST_NAMES = 12  # different values of a parameter without numbers; a parameter with more is left out
BRUSH_TICKS = 41  # of an axis with a logarithmic scale
COLUMNS = 4  # plots side by side
SCALE = "Cividis"  # readable with any colour vision


@dataclass(frozen=True)
class Coordinate:
    """A parameter or an objective as a number [N] for each network, and the labels of some of its values."""

    name: str
    values: npt.NDArray[np.float64]
    ticks: tuple[float, ...] = ()  # () : plotly chooses
    labels: tuple[str, ...] = ()
    continuous: bool = False  # whether values between the ticks have a meaning

    def brushed_at(self) -> dict[str, list]:
        """Return the ticks of an axis of parallel coordinates, where a brushed range can begin and end.

        Plotly moves the ends of a range to ticks. So a continuous axis has many, most of them without a label.
        """
        if not self.ticks:
            return {}
        labels = dict(zip(self.ticks, self.labels, strict=True))
        if self.continuous:
            low, high = float(self.values.min()), float(self.values.max())
            labels |= {float(tick): "" for tick in np.linspace(low, high, BRUSH_TICKS) if float(tick) not in labels}
        ticks = sorted(labels)
        return {"tickvals": ticks, "ticktext": [html.escape(labels[tick]) for tick in ticks]}


def parallel(study: Study) -> go.Figure | None:
    """Return the parallel coordinates of all measured networks: parameters, prune steps and objectives.

    None if there are fewer than `LEAST` networks or no parameter varies. A line is coloured by its accuracy.
    """
    points = drawn(study)
    searched = searched_parameters(study, points)
    if len(points) < LEAST or not searched:
        return None
    accuracy = _rounded(100 * points["val_macro_avg_acc"].to_numpy(float))
    shown = [*searched, *_objectives(study, points), Coordinate("validation %", accuracy)]
    dimensions = []
    for one in shown:
        dimensions.append({"label": html.escape(one.name), "values": one.values.tolist(), **one.brushed_at()})
    line = {"color": accuracy.tolist(), "colorscale": SCALE, "showscale": False}
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line=line,
            customdata=points.index.tolist(),
            labelangle=-18,
            labelside="top",
            unselected={"line": {"color": parts.TRAJECTORY, "opacity": 0.15}},
        )
    )
    font = {"family": FONT, "size": 12, "color": parts.INK}
    figure.update_layout(font=font, paper_bgcolor="white", margin={"l": 60, "r": 50, "t": 78, "b": 22}, height=460)
    return figure


def effects(study: Study) -> go.Figure | None:
    """Return a grid of plots of the validation accuracy over each parameter, coloured by MACs.

    None as in `parallel`.
    """
    points = drawn(study)
    searched = searched_parameters(study, points)
    if len(points) < LEAST or not searched:
        return None
    rows = math.ceil(len(searched) / COLUMNS)
    figure = make_subplots(rows, COLUMNS, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.32 / rows)
    accuracy = _rounded(100 * points["val_macro_avg_acc"].to_numpy(float)).tolist()
    macs = _rounded(np.log10(points["macs"].to_numpy(float)))
    marks = parts.ticks(*parts.x_range(study, points, parts.macs_axis(study)))
    bar = {
        "title": {"text": "M MACs", "side": "top"},
        "tickvals": [math.log10(mark * 1e6) for mark in marks],
        "ticktext": [f"{mark:g}" for mark in marks],
        "thickness": 12,
        "len": min(1.0, 300 / (110 + 230 * rows)),
    }
    for i, one in enumerate(searched):
        marker = {"size": 6, "color": macs.tolist(), "colorscale": SCALE, "coloraxis": "coloraxis"}
        figure.add_scatter(
            x=one.values.tolist(),
            y=accuracy,
            mode="markers",
            name=one.name,
            meta="networks",
            marker=marker,
            customdata=points.index.tolist(),
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 0.08}},
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            row=i // COLUMNS + 1,
            col=i % COLUMNS + 1,
        )
        labels = [_broken(html.escape(label)) for label in one.labels]
        ticks = {"tickvals": list(one.ticks), "ticktext": labels, "tickangle": 0} if one.ticks else {}
        if any("<br>" in label for label in labels):
            ticks["tickfont"] = {"size": 9}
        figure.update_xaxes(title_text=html.escape(one.name), row=i // COLUMNS + 1, col=i % COLUMNS + 1, **ticks)
    for row in range(rows):
        figure.update_yaxes(title_text="validation %", row=row + 1, col=1)
    common = {"gridcolor": parts.GRID, "linecolor": parts.INK, "zeroline": False, "automargin": True}
    figure.update_xaxes(**common, title_standoff=4)
    figure.update_yaxes(**common)
    figure.update_layout(
        font={"family": FONT, "size": 12, "color": parts.INK},
        coloraxis={"colorscale": SCALE, "colorbar": bar},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 56, "r": 14, "t": 14, "b": 50},
        height=120 + 230 * rows,
        hovermode="closest",
        hoverlabel={"bgcolor": "white", "align": "left"},
    )
    return figure


def drawn(study: Study) -> pd.DataFrame:
    """Return the networks in the plots of this module: those of `parts.measured`, or `MOST` of them.

    The index of a row is that of `parts.measured`.
    """
    points = parts.measured(study)
    if len(points) <= MOST:
        return points
    on_front = np.flatnonzero((points["role"] == "front").to_numpy(bool))[:MOST]
    others = np.setdiff1d(np.arange(len(points)), on_front)
    sample = np.random.default_rng(0).choice(others, MOST - len(on_front), replace=False)
    return points.take(np.sort(np.concatenate([on_front, sample])))


def searched_parameters(study: Study, points: pd.DataFrame) -> list[Coordinate]:
    """Return the searched parameters that vary over `points`, and the number of prune steps."""
    space = study.manifest.resolved.space.get("parameters")
    found = []
    columns = [column for column in study.prefixed("config/") if column in points]
    names = _short_names([column.removeprefix("config/") for column in columns])
    for column, name in zip(columns, names, strict=True):
        spec = space.get(column.removeprefix("config/")) if isinstance(space, dict) else None
        if (one := coordinate(name, points[column].tolist(), spec)) is not None:
            found.append(one)
    steps = points["step"].to_numpy(float)
    found.append(
        Coordinate("prune steps", steps, tuple(sorted(set(steps))), tuple(f"{s:g}" for s in sorted(set(steps))))
    )
    return [one for one in found if len(set(one.values.tolist())) > 1]


def coordinate(name: str, values: Sequence[Any], spec: Any) -> Coordinate | None:
    """Return the values [N] of a parameter as numbers; None if one is missing, or if there are too many names.

    `spec` is its range in the space. On a logarithmic scale, the number is the logarithm to base 10. A list of numbers,
    such as prune ratios, becomes its mean. Other values are numbered in the order of their texts.
    """
    if any(summary.absent(value) for value in values):
        return None
    scale = scale_of(spec)
    if scale is not None and (numbers := scale.numbers(values)) is not None:
        x = np.array(numbers)
        if not scale.logarithmic:
            return Coordinate(name, x)
        return logarithmic(name, x)
    lists = [numbers_of(value) for value in values]
    if all(one is not None for one in lists):
        return Coordinate(f"{name}, mean", np.array([np.mean(one) if one else 0.0 for one in lists]))
    if all(isinstance(value, int | float | np.number) for value in values) and len(set(values)) > MOST_NAMES:
        return Coordinate(name, np.asarray(values, dtype=float))
    distinct = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(distinct) > MOST_NAMES:
        return None
    labels = tuple(summary.value_text(value) for value in distinct)
    places = tuple(float(i) for i in range(len(distinct)))
    return Coordinate(name, np.array([float(distinct.index(value)) for value in values]), places, labels)


def logarithmic(name: str, x: npt.NDArray[np.float64]) -> Coordinate:
    """Return the positive values `x` [N] on a logarithmic scale, with labels at 1, 2, 5, 10, ..."""
    marks = parts.ticks(float(x.min()), float(x.max())) or [float(f"{x.min():.3g}"), float(f"{x.max():.3g}")]
    return Coordinate(
        name, _rounded(np.log10(x)), tuple(map(math.log10, marks)), tuple(f"{mark:g}" for mark in marks), True
    )


def numbers_of(value: Any) -> list[float] | None:
    """Return the numbers in `value`, a list of numbers as JSON text such as "[0.3, 0.25]"; None if it is not one."""
    if not isinstance(value, str) or not value.startswith("["):
        return None
    try:
        return [float(item) for item in value.strip("[]").split(",") if item.strip()]
    except ValueError:
        return None


def _objectives(study: Study, points: pd.DataFrame) -> list[Coordinate]:
    """Return the costs of the networks on logarithmic scales: MACs in millions, and size in kB."""
    found = []
    for axis, name in ((parts.macs_axis(study), "M MACs"), (parts.bytes_axis(study), f"kB {study.precision}")):
        x = points[axis.column].to_numpy(float) / axis.scale
        if np.isfinite(x).all() and (x > 0).all():
            found.append(logarithmic(name, x))
    return found


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return `values` rounded to 4 decimals, which the page can store in a third of the space."""
    return np.round(values, 4)


def _broken(label: str) -> str:
    """Return the label of a tick, such as 3x3+3x1+1x3, with a line break after each second plus sign."""
    items = label.split("+")
    return "+<br>".join("+".join(items[i : i + 2]) for i in range(0, len(items), 2))


def _short_names(keys: list[str]) -> list[str]:
    """Return the last parts of configuration keys, and complete keys where the last parts are equal."""
    tails = [key.rsplit(".", 1)[-1] for key in keys]
    return [tail if tails.count(tail) == 1 else key for key, tail in zip(keys, tails, strict=True)]
