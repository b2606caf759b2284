"""Parts that are common to the interactive plot (HTML) and the PNG plot: marker styles, axes, ticks and lines.

Each role of a point (front, dominated, single, infeasible; see `summary.roles`) has its own colour and marker. The
colours are from Okabe and Ito (2008) and can be distinguished with any colour vision.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import front, replicates, summary
from analysis.findings import markers
from analysis.results import Study, take

INK, GRID, TRAJECTORY = "#1f2933", "#e6eaee", "#b4bec8"
LIMIT, BASELINE, FRONT = "#a3306c", "#00795a", "#d55e00"
DARK = {  # colour on a light page -> colour on a dark page; markers keep theirs, which are visible on both
    "white": "#14191f",
    INK: "#e4e9ee",
    GRID: "#2a333c",
    TRAJECTORY: "#5a6672",
    LIMIT: "#f08fc0",
    BASELINE: "#3ecfa5",
}


@dataclass(frozen=True)
class Role:
    """Marker style of all points with the same role (front, dominated, ...); `label` is the text in the legend."""

    label: str
    color: str
    fill: str
    symbol: str  # for plotly
    mpl_symbol: str  # for matplotlib
    size: float  # pixels


ROLES = {  # drawn in this order, so the front is on top
    "infeasible": Role("over a limit", "#7b8794", "white", "circle", "o", 8),
    "single": Role("one seed only", "#b58900", "#f4e2ab", "square", "s", 7),
    "dominated": Role("dominated", "#5b9fc9", "#a9cfe6", "circle", "o", 8),
    "front": Role("front", "#9c4400", FRONT, "diamond", "D", 11),
}


TESTS = {  # shown if the study has refitted networks: column of the points -> marker of their accuracies on test
    "test_macro_avg_acc": Role("search, on test", "#0072b2", "white", "triangle-up", "^", 8),
    "refitted_test_macro_avg_acc": Role("refitted, on test", "#004b76", "#0072b2", "triangle-up", "^", 10),
}


REFERENCE = Role("other systems", "#5f3d99", "#5f3d99", "x-thin-open", "x", 9)


@dataclass(frozen=True)
class Axis:
    """The x axis of a plot: MACs in millions, or bytes in kB."""

    column: str  # column of points.csv
    scale: float  # divisor that converts the column to the unit of the axis
    title: str
    limit: float | None  # limit of the study in the unit of the axis; None: no limit
    limit_label: str


def macs_axis(study: Study) -> Axis:
    limit = (study.limits.macs or 0) / 1e6
    return Axis("macs", 1e6, "MACs (millions, log)", limit or None, f"limit {limit:g} M")


def bytes_axis(study: Study) -> Axis:
    limit = (study.limits.bytes or 0) / 1e3
    title = f"size at {study.precision} (kB, log)"
    return Axis(study.bytes_column, 1e3, title, limit or None, f"limit {limit:g} kB")


def measured(study: Study) -> pd.DataFrame:
    """Return the measured points of a study (`study.points` with finite objectives), with the added column `role`.

    The role of a point is front, dominated, single or infeasible; `summary.roles` explains these words. The index of
    the rows is 0, 1, ...
    """
    role = summary.roles(study)
    return take(study.with_test().assign(role=role), role != "unmeasured").reset_index(drop=True)


def y_title(study: Study) -> str:
    """Return the title of the accuracy axis."""
    return f"{'validation' if study.refitted is None else 'validation or test'} macro accuracy (%)"


def coordinates(points: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return the coordinates of `points`: x in the unit of `axis`, and y, the validation accuracy in per cent."""
    x = points[axis.column].to_numpy(float) / axis.scale
    return x.tolist(), np.round(100 * points["val_macro_avg_acc"].to_numpy(float), 6).tolist()


def tests(study: Study, points: pd.DataFrame, axis: Axis) -> list[tuple[Role, list[float], list[float]]]:
    """Return (marker, x, y) of the test accuracies (%) of `points`: of the search's networks and of the refitted ones.

    The list is empty if the study has no refitted networks.
    """
    if study.refitted is None:
        return []
    found = []
    for column, look in TESTS.items():
        if column in points:
            chosen = take(points, points[column].notna())
            x = chosen[axis.column].to_numpy(float) / axis.scale
            found.append((look, x.tolist(), (100 * chosen[column].to_numpy(float)).tolist()))
    return found


def errors_percent(study: Study, points: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the lengths [2, N] of the error bars of `points` in percentage points: below and above the accuracy.

    A bar is the 95 % interval of a mean over seeds or, in a study without replicates, one standard error. A length that
    is unknown, such as that of a mean over one seed, is 0.
    """
    ends = summary.error_bars(study, points) - points["val_macro_avg_acc"].to_numpy(float)
    return np.nan_to_num(100 * np.abs(ends))


def errors_label(study: Study) -> str:
    return "95 % interval over seeds" if study.replicated else "± 1 standard error"


def single_seeds(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of points.csv from which the means in `points` were computed, one row per network (seed).

    The table is empty if the study has no replicates, because its points are not means.
    """
    if not study.replicated:
        return points.head(0)
    ids = zip(points["trial_id"], points["step"], strict=True)
    found = [replicates.networks(study.raw, str(trial), int(step)) for trial, step in ids]
    return pd.concat(found) if found else points.head(0)


def step_line(best: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return x and y of the points that the staircase line of the front connects: the best accuracy up to each x.

    `best` are the points of the front. Points that are on the front because of an objective that the plot does not show
    may lie below the line.
    """
    x, y = coordinates(best, axis)
    mask = front.pareto_mask(np.column_stack([x, y]), ("min", "max"))
    return coordinates(take(best, mask).sort_values(by=axis.column), axis)


def trajectories(points: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return x and y of the lines that connect, for each trial, its points in the order of the prune steps.

    Trials with only one point are omitted. A NaN follows each trial, so that one plot call draws separate lines.
    """
    ordered = points.sort_values(by=["trial_id", "step"], kind="stable")
    ordered = take(ordered, ordered["trial_id"].duplicated(keep=False))
    x, y = map(np.array, coordinates(ordered, axis))
    trials = ordered["trial_id"].to_numpy(object)
    ends = np.flatnonzero(trials[1:] != trials[:-1]) + 1
    gaps = [*ends, len(ordered)] if len(ordered) else []  # a NaN after each trial
    return np.insert(x, gaps, math.nan).tolist(), np.insert(y, gaps, math.nan).tolist()


def x_range(study: Study, points: pd.DataFrame, axis: Axis) -> tuple[float, float]:
    """Return the lower and the upper end of `axis` in its unit.

    All points, other systems and the limit are between them.
    """
    marks = [x for x in coordinates(points, axis)[0] if x > 0] + ([axis.limit] if axis.limit else [])
    if axis.column == "macs":
        marks += [marker.macs / axis.scale for marker in markers.markers(study)]
    return (min(marks) / 1.25, max(marks) * 1.25) if marks else (0.1, 100.0)


def y_range(study: Study, points: pd.DataFrame) -> tuple[float, float]:
    """Return the lower and the upper end of the accuracy axis in per cent.

    All points, the baseline and other systems are between them. Long error bars may go beyond these ends, because the
    interval of two seeds can be very wide.
    """
    y = 100 * points["val_macro_avg_acc"].to_numpy(float)
    below, above = errors_percent(study, points)
    found = summary.baseline(study)
    on_test = [value for _, _, values in tests(study, points, macs_axis(study)) for value in values]
    others = [marker.accuracy for marker in markers.markers(study)]
    marks = np.array([*y, *on_test, *others, *([100 * found[1]] if found else [])])
    if not len(marks):
        return 0.0, 100.0
    margin = max(10.0, float(np.ptp(marks)))
    low = max(float(min(marks.min(), *(y - below))), float(marks.min()) - margin) if len(y) else float(marks.min())
    high = min(float(max(marks.max(), *(y + above))), float(marks.max()) + margin) if len(y) else float(marks.max())
    return low - 2, high + 2


def baseline_label_above(study: Study, points: pd.DataFrame) -> bool:
    """Return whether to place the label of the baseline above (True) or below (False) the line of the baseline.

    The label is at the left end of the plot; it is placed on the side that has fewer points there.
    """
    found = summary.baseline(study)
    left = points.sort_values(by="macs")["val_macro_avg_acc"].to_numpy(float)[: max(1, len(points) // 4)]
    return found is None or not len(left) or float(np.median(left)) < found[1]


def ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis between `low` and `high`: ..., 0.5, 1, 2, 5, 10, 20, ..."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{digit * 10.0**decade:g}") for decade in decades for digit in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]
