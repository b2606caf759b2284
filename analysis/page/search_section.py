"""The section "How the search went" of the HTML report (template: templates/search.html.j2).

The script of the page fills its two plots; analysis/page/search_figures.py makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from analysis import summary
from analysis.findings import progress as progressing
from analysis.findings import stops as stopping
from analysis.page.rendering import render
from analysis.page.search_figures import NEWEST, search_figures, time_unit
from analysis.results import MOMENT, Study


@dataclass(frozen=True)
class Table:
    """A table of the section: its id in the page, a note above it, column headers and cells."""

    id: str
    note: str
    heads: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    words: tuple[int, ...]  # columns that contain text, which is aligned to the left


def search_section(study: Study) -> Markup:
    """Return the HTML section on the course of the search.

    It shows how the hypervolume of the front grew, the trials against time, which trials were stopped or failed, and
    why samples were rejected. The section is empty if the study has none of this.
    """
    figures, missing = search_figures(study), _missing(study)
    tables = [table for table in (_stops(study), _failures(study), _rejected(study)) if table.rows]
    if not (figures or tables or missing):
        return Markup("")
    return render(
        "search.html.j2",
        sentences=_sentences(study),
        missing=missing,
        curve=_curve_caption(study) if "progress" in figures else "",
        bars=_bars_caption(study) if "trials" in figures else "",
        tables=tables,
    )


def _sentences(study: Study) -> list[str]:
    """Return sentences on the hypervolume of the front, and on the epochs that early stopping saved."""
    found, lines = progressing.progress(study), []
    if found is not None and (grew := found.grew) is not None:
        end = f"{'the limit of ' if found.limited else ''}{summary.millions(found.reference)} M MACs"
        line = (
            f"The hypervolume of the front is {found.hypervolume[-1]:.3f}: the front dominates this share of the "
            f"rectangle from 0 to 100 % accuracy and from 0 MACs to {end}."
        )
        if not found.limited:
            line += (
                f" This end is {progressing.MARGIN:g} times the largest candidate, because the study has no MACs "
                "limit; so the value cannot be compared with that of another study, and changes when a larger network "
                "is measured."
            )
        unit, per_hour = time_unit(found.all_hours)
        name, step = found.names[grew]
        moment = [f"{found.hours[grew] * per_hour:.1f} of {found.all_hours * per_hour:.1f} {unit}"]
        if found.trials is not None:
            moment.insert(0, f"{found.trials[grew]} of {found.all_trials} trials had begun")
        lines += [line, f"It last grew with trial {name}, step {step} ({', '.join(moment)})."]
    elif found is not None and (len(study.raw) or study.trials is not None):
        lines.append("No measured network is a candidate for the front, so there is no hypervolume curve.")
    if (saved := stopping.saving(study)) is not None and saved[0]:
        lines.append(
            f"The scheduler {study.manifest.requested.scheduler} saved {saved[0]} of {saved[1]} planned epochs "
            f"({100 * saved[0] / saved[1]:.0f} %) of the trials that completed or were stopped early."
        )
    return lines


def _missing(study: Study) -> str:
    """Return what the result files do not tell and why, as a sentence; empty if nothing is missing.

    A study that has not trained any trial lacks nothing.
    """
    trained = any(number for status, number in (study.manifest.progress.trials or {}).items() if status != "rejected")
    lacks = [f"the columns {' and '.join(MOMENT)} of points.csv"] if not set(MOMENT) <= set(study.raw) else []
    lacks = lacks if len(study.raw) else ["points.csv"] if study.points_missing else []
    lacks += ["trials.csv"] if study.trials is None and (trained or len(study.raw)) else []
    if not lacks:
        return ""
    how = "tune/run.py --resume writes them from the journal"
    if not study.manifest.resolved.code:
        how = "this study has no journal from which they could be written"
    return f"The course of this search is not fully known, because it lacks {' and '.join(lacks)}: {how}."


def _curve_caption(study: Study) -> str:
    text = (
        "Hypervolume of the front against what the search had cost when a network was measured: trials that had begun, "
        "epochs of all trials, and run time without the pauses between drivers. A marker is a candidate with which the "
        "front grew."
    )
    if study.trials is None:
        text = text.replace("trials that had begun, ", "", 1)
    if study.replicated:
        text += (
            " The candidates are means over seeds: a mean counts from the moment when its second seed was measured, "
            "with its present value. Single networks do not count."
        )
    return text


def _bars_caption(study: Study) -> str:
    n = 0 if study.trials is None else len(study.trials)
    which = f"The newest {NEWEST} of {n} trials" if n > NEWEST else "The trials"
    return (
        f"{which} in the order of their creation. A bar extends from the creation of a trial, which may then have "
        "waited for a worker, to its end; pauses between drivers are left out. A dot is a measured network, and a "
        "cross the end of a trial that the scheduler stopped."
    )


def _stops(study: Study) -> Table:
    rows = []
    for stop in stopping.stops(study):
        when = f"dense, epoch {stop.epochs}"
        if stop.stage:
            when = f"prune step {stop.stage}, {stop.epochs} epochs in total"
        saved = summary.DASH if stop.saved is None else stop.saved
        rows.append((when, stop.by, len(stop.trials), saved, _names(stop.trials)))
    heads = ("stopped after", "by", "trials", "epochs saved", "names")
    return Table("stops", "Trials that were stopped early.", heads, rows, words=(0, 1, 4))


def _failures(study: Study) -> Table:
    rows = []
    for failure in stopping.failures(study):
        reason = failure.reason + (" (and reasons with other numbers)" if failure.varied else "")
        rows.append((reason, failure.status, len(failure.trials), _names(failure.trials)))
    note = "Trials that failed because of their configuration, or crashed; a resume retries crashed trials."
    return Table("failures", note, ("reason", "status", "trials", "names"), rows, words=(0, 1, 3))


def _rejected(study: Study) -> Table:
    progress = study.manifest.progress
    reasons = progress.rejected_reasons or {"unknown": (progress.trials or {}).get("rejected", 0)}
    rows = sorted(((reason, n) for reason, n in reasons.items() if n), key=lambda row: -row[1])
    note = "Samples that were rejected before training."
    if progress.status not in ("complete", "interrupted"):
        note += " study.json has their numbers from the end of the last driver; tune/status.py shows the present ones."
    return Table("rejected", note, ("reason", "samples"), rows, words=(0,))


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
