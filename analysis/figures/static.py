"""The plot of accuracy over MACs as PNG and SVG, for papers (matplotlib without pyplot, needs no display)."""

from io import BytesIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import summary
from analysis.figures import parts
from analysis.findings import markers
from analysis.results import Study, take


def png(study: Study) -> bytes:
    """Return the plot of validation accuracy over MACs as a PNG of 1600 x 1000 pixels (`plot`)."""
    return _saved(plot(study), "png", {"Software": None})


def svg(study: Study) -> bytes:
    """Return the plot of validation accuracy over MACs as SVG (`plot`); its texts are outlines."""
    return _saved(plot(study), "svg", {"Date": None, "Creator": None})


def _saved(figure: Figure, form: str, metadata: dict[str, None]) -> bytes:
    stream = BytesIO()
    with rc_context({"svg.hashsalt": "asc-tune"}):  # equal studies have equal files
        figure.savefig(stream, format=form, metadata=metadata)
    return stream.getvalue()


def plot(study: Study) -> Figure:
    """Return the plot of validation accuracy over MACs.

    If the study has no measured point, the plot has axes, but no markers.
    """
    points, axis = parts.measured(study), parts.macs_axis(study)
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    line = {"color": parts.TRAJECTORY, "lw": 0.9, "label": "prune trajectory"}
    if len(points):
        axes.plot(*parts.trajectories(points, axis), zorder=1, **line)
    for level, (role, look) in enumerate(parts.ROLES.items(), start=2):
        chosen = take(points, points["role"] == role)
        if chosen.empty:
            continue
        x, y = parts.coordinates(chosen, axis)
        if role == "front":
            steps = parts.step_line(chosen, axis)
            axes.plot(*steps, color=look.fill, lw=1.6, drawstyle="steps-post", zorder=level)
            bars = {"fmt": "none", "ecolor": look.fill, "alpha": 0.45, "lw": 1, "capsize": 2}
            label = parts.errors_label(study)
            axes.errorbar(x, y, yerr=parts.errors_percent(study, chosen), zorder=level, label=label, **bars)
            seeds = parts.coordinates(parts.single_seeds(study, chosen), axis)
            if seeds[0]:
                axes.scatter(*seeds, 9, c="none", edgecolors=look.color, lw=0.6, zorder=level, label="each seed")
        style = {"c": look.fill, "edgecolors": look.color, "lw": 0.9, "marker": look.mpl_symbol}
        axes.scatter(x, y, (look.size * 0.62) ** 2, zorder=level, label=look.label, **style)
    for look, x, y in parts.tests(study, points, axis):
        style = {"c": look.fill, "edgecolors": look.color, "lw": 0.9, "marker": look.mpl_symbol}
        axes.scatter(x, y, (look.size * 0.62) ** 2, zorder=len(parts.ROLES) + 2, label=look.label, **style)
    if others := markers.markers(study):
        x, y = [one.macs / axis.scale for one in others], [one.accuracy for one in others]
        axes.scatter(x, y, 30, c=parts.REFERENCE.color, marker=parts.REFERENCE.mpl_symbol, label=parts.REFERENCE.label)
    if axis.limit:
        axes.axvline(axis.limit, color=parts.LIMIT, ls="--", lw=1.1)
        place = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 8.5}
        axes.text(axis.limit * 0.98, 0.015, axis.limit_label, color=parts.LIMIT, **place)
    if (found := summary.baseline(study)) is not None:
        axes.axhline(100 * found[1], color=parts.BASELINE, ls=":", lw=1.3)
        above = parts.baseline_label_above(study, points)
        place = {"transform": axes.get_yaxis_transform(), "va": "bottom" if above else "top", "fontsize": 8.5}
        label = f"baseline {summary.percent(found[1])} %"
        axes.text(0.008, 100 * found[1] + (0.2 if above else -0.3), label, color=parts.BASELINE, **place)
    low, high = parts.x_range(study, points, axis)
    marks = parts.ticks(low, high)
    axes.set(xscale="log", xlim=(low, high), ylim=parts.y_range(study, points))
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=axis.title, ylabel=parts.y_title(study))
    lack = "points.csv is missing" if study.points_missing else "no feasible point yet"
    title = study.name if "front" in set(points["role"]) else f"{study.name}: {lack}"
    axes.set_title(title, parse_math=False)
    axes.grid(color=parts.GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(points):
        axes.legend(loc="upper left", fontsize=8.5, framealpha=0.9)
    return figure
