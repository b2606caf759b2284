"""The interactive plots of the search (plotly): hypervolume against cost, and trials against time.

search_figures(study)    # {"progress": ..., "trials": ...}, without the plots for which the study has no data
"""

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import summary
from analysis.figures import parts
from analysis.figures.interactive import FONT
from analysis.findings.progress import Progress, progress, run_time_s
from analysis.findings.stops import by_scheduler
from analysis.results import Study, take

NEWEST = 1000  # largest number of trials in the plot of trials against time
STATUSES = {  # status -> its name in the legend, and its colour (Okabe and Ito 2008, darkened)
    "complete": ("complete", "#8fc1e3"),
    "stopped early": ("stopped early", "#f0c35c"),
    "failed": ("failed", "#a3306c"),
    "crashed": ("crashed", "#5c3a6b"),
    "running": ("not ended", "#6fb59f"),
}


def search_figures(study: Study) -> dict[str, go.Figure]:
    """Return the plots of the section on the search: id of the HTML element -> figure."""
    found, made = progress(study), {}
    if found is not None and len(found.hypervolume):
        made["progress"] = progress_figure(study, found)
    if study.trials is not None and len(study.trials):
        made["trials"] = trials_figure(study, study.trials)
    return made


def progress_figure(study: Study, found: Progress) -> go.Figure:
    """Return the hypervolume of the front against trials, epochs and run time, in three panels with one y axis.

    Markers are the candidates with which it grew; their `customdata` are their rows in `parts.measured`. The script of
    the page writes their texts in the first panel (`meta` "networks"). The last trace is empty: the script fills it
    with the candidates of the trial under the mouse pointer.
    """
    unit, per_hour = time_unit(found.all_hours)
    panels: list[tuple[str, Any, float]] = [
        ("epochs", found.epochs, found.all_epochs),
        (f"run time ({unit})", found.hours * per_hour, found.all_hours * per_hour),
    ]
    if found.trials is not None:
        panels.insert(0, ("trials", found.trials, float(found.all_trials or 0)))
    figure = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.035)
    grew = np.flatnonzero(np.diff(found.hypervolume, prepend=0.0) > 0)
    y = found.hypervolume[grew].tolist()
    names, networks = [found.names[i] for i in grew], _rows(study)
    text = [f"trial {html.escape(trial)}, step {step}" for trial, step in names]
    axis = {"gridcolor": parts.GRID, "linecolor": parts.INK, "ticks": "outside", "zeroline": False}
    for column, (title, values, last) in enumerate(panels, start=1):
        x = np.asarray(values, dtype=float)[grew].tolist()
        line = {"color": parts.FRONT, "width": 2.2, "shape": "hv"}
        end = max([last, *x])
        curve = {"x": [0.0, *x, end], "y": [0.0, *y, found.hypervolume[-1]], "line": line, "mode": "lines"}
        figure.add_scatter(**curve, name=f"curve {title}", hoverinfo="skip", row=1, col=column)
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=f"growth {title}",
            marker={"size": 5, "color": parts.ROLES["front"].color},
            meta="networks" if column == 1 else None,
            customdata=[networks[name] for name in names],
            text=text,
            hovertemplate=f"hypervolume %{{y:.3f}}<br>%{{text}}<br>{title}: %{{x:.4~g}}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(
            title_text=title, range=[0, 1.02 * end or 1], nticks=5, tickangle=0, row=1, col=column, **axis
        )
    _add_highlight(figure, row=1, col=1)
    figure.update_yaxes(range=[0, 1.08 * float(found.hypervolume[-1]) or 1], **axis)
    figure.update_yaxes(title_text="hypervolume", row=1, col=1)
    _lay_out(figure, height=330)
    figure.update_layout(showlegend=False)
    return figure


def trials_figure(study: Study, trials: pd.DataFrame) -> go.Figure:
    """Return the newest trials of `study` as horizontal bars from their creation to their end, coloured by status.

    A cross marks the end of a trial that the scheduler stopped, and a dot each measured network. A trial that has not
    ended extends to the latest moment in the tables. `meta` and `customdata` of the dots and the last trace are as in
    `progress_figure`; in a study with replicates, the dots of all seeds have the row of their mean.
    """
    hours = run_time_s(study) / 3600
    unit, per_hour = time_unit(hours)
    shown = trials.tail(NEWEST).assign(place=range(max(0, len(trials) - NEWEST), len(trials)))
    shown["begin"] = shown["created_s"] / 3600 * per_hour
    shown["end"] = shown["ended_s"].fillna(hours * 3600).to_numpy(float) / 3600 * per_hour
    figure = go.Figure()
    for status, (label, color) in STATUSES.items():
        chosen = take(shown, shown["status"] == status)
        if chosen.empty:
            continue
        figure.add_bar(
            y=chosen["place"].tolist(),
            x=(chosen["end"] - chosen["begin"]).tolist(),
            base=chosen["begin"].tolist(),
            orientation="h",
            width=0.75 if len(shown) <= 100 else 1.0,
            name=label,
            marker={"color": color, "line": {"color": color, "width": 1}},  # the edge shows a bar of length 0
            text=[_hover_text(trial) for trial in chosen.to_dict("records")],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    places: dict[Any, Any] = dict(zip(shown["trial_id"], shown["place"], strict=True))
    name, networks = "config_id" if study.replicated else "trial_id", _rows(study)
    rows: list[dict[Any, Any]] = study.raw.to_dict("records") if "search_s" in study.raw else []
    dots = [row for row in rows if row["trial_id"] in places and (row[name], row["step"]) in networks]
    if dots:
        figure.add_scatter(
            x=[row["search_s"] / 3600 * per_hour for row in dots],
            y=[places[row["trial_id"]] for row in dots],
            mode="markers",
            name="network measured",
            marker={"size": 4 if len(shown) > 100 else 6, "color": "white", "line": {"color": parts.INK, "width": 1}},
            meta="networks",
            customdata=[networks[row[name], row["step"]] for row in dots],
            text=[f"trial {html.escape(row['trial_id'])}, step {row['step']}" for row in dots],
            hovertemplate="%{text}<extra></extra>",
        )
    stopped = take(shown, shown["stopped_by"].map(lambda by: by_scheduler(study, by)))
    if len(stopped):
        figure.add_scatter(
            x=stopped["end"].tolist(),
            y=stopped["place"].tolist(),
            mode="markers",
            name="stopped by the scheduler",
            marker={"symbol": "x", "size": 4 if len(shown) > 100 else 7, "color": parts.INK},
            hoverinfo="skip",
        )
    _add_highlight(figure)
    height = int(min(900, 150 + 16 * max(4, len(shown))))
    _lay_out(figure, height)
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}
    figure.update_layout(barmode="overlay", legend=legend)
    axis = {"linecolor": parts.INK, "ticks": "outside", "zeroline": False}
    title = f"run time of the study ({unit})"
    figure.update_xaxes(title_text=title, range=[0, 1.02 * hours * per_hour or 1], gridcolor=parts.GRID, **axis)
    marked = take(shown, np.arange(len(shown)) % max(1, -(-len(shown) // 40)) == 0)
    figure.update_yaxes(
        range=[shown["place"].max() + 0.6, shown["place"].min() - 0.6],  # the first trial is at the top
        tickvals=marked["place"].tolist(),
        ticktext=[html.escape(name) for name in marked["trial_id"]],
        showgrid=False,
        **axis,
    )
    return figure


def time_unit(hours: float) -> tuple[str, float]:
    """Return the unit in which a run time of `hours` is shown, and how many of it an hour has."""
    return ("h", 1.0) if hours >= 2 else ("min", 60.0) if hours >= 1 / 30 else ("s", 3600.0)


def _rows(study: Study) -> dict[tuple[str, int], int]:
    """Return the row in `parts.measured` of each network, named by its trial and prune step."""
    points = parts.measured(study)
    names = zip(points["trial_id"], points["step"], strict=True)
    return {(trial, int(step)): i for i, (trial, step) in enumerate(names)}


def _hover_text(trial: dict[Any, Any]) -> str:
    planned = "" if summary.absent(trial["planned_epochs"]) else f" of {trial['planned_epochs']:.0f}"
    by = f" by {trial['stopped_by']}" if trial["stopped_by"] else ""
    lines = [f"trial {trial['trial_id']}: {STATUSES[trial['status']][0]}{by}", f"{trial['epochs']}{planned} epochs"]
    if trial["reason"]:
        lines.append(trial["reason"])
    return "<br>".join(html.escape(line) for line in lines)


def _add_highlight(figure: go.Figure, **place: int) -> None:
    ring = {"symbol": "circle-open", "size": 13, "color": parts.INK, "line": {"width": 2}}
    figure.add_scatter(
        x=[], y=[], mode="markers", name="trial", marker=ring, hoverinfo="skip", showlegend=False, **place
    )


def _lay_out(figure: go.Figure, height: int) -> None:
    font = {"family": FONT, "size": 13, "color": parts.INK}
    figure.update_layout(
        font=font,
        height=height,
        hoverlabel={"font": {**font, "size": 12}, "bgcolor": "white", "align": "left"},
        plot_bgcolor="white",
        paper_bgcolor="white",
        margin={"l": 60, "r": 14, "t": 28, "b": 62},
        hovermode="closest",
    )
