"""The section of the report on the course of the search. analysis/figures/search.py makes its two plots."""

from collections.abc import Sequence

from analysis import summary
from analysis.figures.search import NEWEST, time_unit
from analysis.findings import progress as progressing
from analysis.findings import stops as stopping
from analysis.page.document import Block, Cell, Head, Plot, Row, Section, Table, Text
from analysis.results import MOMENT, Study


def search_section(study: Study, plots: set[str]) -> Section | None:
    """Return the section on the course of the search; None if nothing is known of it.

    It shows how the hypervolume of the front grew, the trials against time, which trials were stopped or failed, and
    why samples were rejected. `plots` has the names of the plots that the page can draw.
    """
    missing = _missing(study)
    tables = [block for blocks in (_stops(study), _failures(study), _rejected(study)) for block in blocks]
    if not (tables or missing or {"progress", "trials"} & plots):
        return None
    blocks: list[Block] = [Text(line) for line in _sentences(study)]
    blocks += [Text(missing, "warning")] if missing else []
    blocks += [Plot("progress", _curve_caption(study), "wide")] if "progress" in plots else []
    blocks += [Plot("trials", _bars_caption(study), "wide")] if "trials" in plots else []
    return Section("search", "How the search went", [*blocks, *tables])


def _sentences(study: Study) -> list[str]:
    """Return sentences on the hypervolume of the front, and on the epochs that early stopping saved."""
    found, lines = progressing.progress(study), []
    if found is not None and (grew := found.grew) is not None:
        end = f"{'the limit of ' if found.limited else ''}{found.reference / 1e6:.3g} M MACs"
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
        none = "No measured network is a candidate for the front, so there is no hypervolume curve."
        lines.append("The hypervolume of the front is 0, so there is no curve of it." if found.names else none)
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


def _stops(study: Study) -> list[Block]:
    rows = []
    for stop in stopping.stops(study):
        when = f"epoch {stop.epochs}, dense"
        if stop.stage:
            when = f"epoch {stop.epochs}, after prune step {stop.stage}"
        saved = summary.DASH if stop.saved is None else str(stop.saved)
        words = [Cell(text, kind="text wrap") for text in (when, stop.by, _names(stop.trials))]
        rows.append(Row([*words[:2], Cell(str(len(stop.trials))), Cell(saved), words[2]]))
    heads = [Head("stopped after", "text"), Head("by", "text"), Head("trials"), Head("epochs saved")]
    return _table("stops", "Trials that were stopped early.", [*heads, Head("names", "text")], rows)


def _failures(study: Study) -> list[Block]:
    rows = []
    for failure in stopping.failures(study):
        reason = failure.reason + (" (and reasons with other numbers)" if failure.varied else "")
        words = [Cell(text, kind="text wrap") for text in (reason, failure.status, _names(failure.trials))]
        rows.append(Row([*words[:2], Cell(str(len(failure.trials))), words[2]]))
    note = "Trials that failed because of their configuration, or crashed; a resume retries crashed trials."
    heads = [Head("reason", "text"), Head("status", "text"), Head("trials"), Head("names", "text")]
    return _table("failures", note, heads, rows)


def _rejected(study: Study) -> list[Block]:
    progress = study.manifest.progress
    reasons = progress.rejected_reasons or {"unknown": (progress.trials or {}).get("rejected", 0)}
    found = sorted(((reason, n) for reason, n in reasons.items() if n), key=lambda row: -row[1])
    note = "Samples that were rejected before training."
    if progress.status not in ("complete", "interrupted"):
        note += " study.json has their numbers from the end of the last driver; tune/status.py shows the present ones."
    heads = [Head("reason", "text"), Head("samples")]
    return _table("rejected", note, heads, [Row([Cell(reason, kind="text wrap"), Cell(str(n))]) for reason, n in found])


def _table(name: str, note: str, heads: list[Head], rows: list[Row]) -> list[Block]:
    """Return a table and a note above it; nothing if the table has no rows."""
    return [Text(note, "note"), Table(name, heads, rows)] if rows else []


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
