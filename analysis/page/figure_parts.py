"""Common parts of the interactive and the printed Pareto plot: styles of roles, axes, ticks, lines through points.

The colours are from Okabe and Ito (2008) and can be distinguished with any colour vision; each role also has its own
marker.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import front, replicates, summary
from analysis.results import Study, take

INK, GRID, TRAJECTORY = "#1f2933", "#e6eaee", "#b4bec8"
LIMIT, BASELINE, FRONT = "#a3306c", "#00795a", "#d55e00"
Y_TITLE = "validation macro accuracy (%)"


@dataclass(frozen=True)
class Role:
    """Style of the points of one role, with the symbol names of plotly and matplotlib."""

    label: str
    color: str
    fill: str
    symbol: str
    mpl_symbol: str
    size: float  # pixels


ROLES = {  # drawn in this order, so the front is on top
    "infeasible": Role("over a limit", "#7b8794", "white", "circle", "o", 8),
    "single": Role("one seed only", "#b58900", "#f4e2ab", "square", "s", 7),
    "dominated": Role("dominated", "#5b9fc9", "#a9cfe6", "circle", "o", 8),
    "front": Role("front", "#9c4400", FRONT, "diamond", "D", 11),
}


@dataclass(frozen=True)
class Axis:
    """A complexity axis: a column of the points, the divisor of its values, and the limit in the axis' unit."""

    column: str
    scale: float
    title: str
    limit: float | None
    limit_label: str


def macs_axis(study: Study) -> Axis:
    limit = (study.limits.macs or 0) / 1e6
    return Axis("macs", 1e6, "MACs (millions, log)", limit or None, f"limit {limit:g} M")


def bytes_axis(study: Study) -> Axis:
    limit = (study.limits.bytes or 0) / 1e3
    title = f"model size at {study.precision} (kB = 1000 bytes, log)"
    return Axis(study.bytes_column, 1e3, title, limit or None, f"limit {limit:g} kB")


def measured(study: Study) -> pd.DataFrame:
    """Return the points that can be drawn, with an additional column `role`."""
    role = summary.roles(study)
    return take(study.with_test().assign(role=role), role != "unmeasured")


def coordinates(points: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return the complexity of `points` in the axis' unit, and their validation accuracy in per cent."""
    x = points[axis.column].to_numpy(float) / axis.scale
    return x.tolist(), (100 * points["val_macro_avg_acc"].to_numpy(float)).tolist()


def errors_percent(study: Study, points: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the lengths [2, N] of the error bars below and above `points`, in percentage points of accuracy.

    A length is 0 if it is unknown.
    """
    ends = summary.error_bars(study, points) - points["val_macro_avg_acc"].to_numpy(float)
    return np.nan_to_num(100 * np.abs(ends))


def errors_label(study: Study) -> str:
    return "95 % interval over seeds" if study.replicated else "± 1 standard error"


def single_seeds(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """Return the networks whose means are `points`, one row per seed; no rows for a study without replicates."""
    if not study.replicated:
        return points.head(0)
    ids = zip(points["trial_id"], points["step"], strict=True)
    found = [replicates.networks(study.raw, str(trial), int(step)) for trial, step in ids]
    return pd.concat(found) if found else points.head(0)


def step_line(best: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return x and y of the step line: the best accuracy among the front's points `best` up to each complexity.

    With three objectives, some points of the front are below this line.
    """
    x, y = coordinates(best, axis)
    mask = front.pareto_mask(np.column_stack([x, y]), ("min", "max"))
    return coordinates(take(best, mask).sort_values(by=axis.column), axis)


def trajectories(points: pd.DataFrame, axis: Axis) -> tuple[list[float], list[float]]:
    """Return x and y of all trials with more than one point, in step order, with NaN between trials."""
    ordered = points.sort_values(by=["trial_id", "step"], kind="stable")
    ordered = take(ordered, ordered["trial_id"].duplicated(keep=False))
    x, y = map(np.array, coordinates(ordered, axis))
    trials = ordered["trial_id"].to_numpy(object)
    ends = np.flatnonzero(trials[1:] != trials[:-1]) + 1
    gaps = [*ends, len(ordered)] if len(ordered) else []  # a NaN after each trial
    return np.insert(x, gaps, math.nan).tolist(), np.insert(y, gaps, math.nan).tolist()


def x_range(points: pd.DataFrame, axis: Axis) -> tuple[float, float]:
    """Return the ends of a complexity axis in its unit, so that all points and the limit are inside."""
    marks = [x for x in coordinates(points, axis)[0] if x > 0] + ([axis.limit] if axis.limit else [])
    return (min(marks) / 1.25, max(marks) * 1.25) if marks else (0.1, 100.0)


def y_range(study: Study, points: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the accuracy axis in per cent, so that all points and the baseline are inside.

    Error bars are included only up to a maximum, because the interval of two seeds can be very wide.
    """
    y = 100 * points["val_macro_avg_acc"].to_numpy(float)
    below, above = errors_percent(study, points)
    found = summary.baseline(study)
    marks = np.array([*y, *([100 * found[1]] if found else [])])
    if not len(marks):
        return 0.0, 100.0
    room = max(10.0, float(np.ptp(marks)))
    low = max(float(min(marks.min(), *(y - below))), float(marks.min()) - room) if len(y) else float(marks.min())
    high = min(float(max(marks.max(), *(y + above))), float(marks.max()) + room) if len(y) else float(marks.max())
    return low - 2, high + 2


def baseline_label_above(study: Study, points: pd.DataFrame) -> bool:
    """Return whether the label at the left end of the baseline has more room above the line than below it."""
    found = summary.baseline(study)
    left = points.sort_values(by="macs")["val_macro_avg_acc"].to_numpy(float)[: max(1, len(points) // 4)]
    return found is None or not len(left) or float(np.median(left)) < found[1]


def ticks(low: float, high: float) -> list[float]:
    """Return the ticks 1, 2, 5, 10, ... within [low, high]."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{digit * 10.0**decade:g}") for decade in decades for digit in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]
