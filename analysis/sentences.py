"""What a study says in sentences, for the terminal and the page.

A fact that the study does not hold is left out; nothing is filled in.
"""

import math

import numpy as np

from analysis import front
from analysis.results import Study
from analysis.summary import (
    baseline,
    millions,
    percent,
    roles,
    standard_error,
    trial_counts,
    validation_clips,
)

SEED_SD_POINTS = 1.29  # pooled sd over seeds, accuracy points, 25 % split of TAU 2022 Mobile (DESIGN.md, facts)


def headline(study: Study) -> str:
    """One sentence: the size of the front and its two ends; without a front, why there is none."""
    best = front.pareto_points(study).to_dict("records")
    if not best:
        return _why_empty(study)
    top, small = max(best, key=lambda point: point["val_macro_avg_acc"]), best[0]
    ends = f"best {percent(top['val_macro_avg_acc'])} % at {millions(top['macs'])} M MACs"
    if len(best) > 1:
        ends += f", smallest {millions(small['macs'])} M MACs at {percent(small['val_macro_avg_acc'])} %"
    trials, measured = trial_counts(study)
    found = _plural(len(best), "non-dominated feasible point")
    searched = f"{_plural(sum(trials.values()), 'trial')}, {_plural(measured, 'measured point')}"
    return f"{found} from {searched}; {ends}."


def facts(study: Study) -> dict[str, str]:
    """Term to text: how the front was chosen, trials, limits, baseline, teachers, hypervolume."""
    trials, measured = trial_counts(study)
    detail = ", ".join(f"{number} {status}" for status, number in trials.items())
    rejected = (study.manifest.get("trials") or {}).get("rejected")
    told = {"Chosen on": _chosen_on(study), "Trials": detail or "none trained yet"}
    told["Trials"] += f", {rejected} rejected before training" if rejected else ""
    told["Trials"] += f"; {_plural(measured, 'measured point')}"
    macs, size = study.limit("macs"), study.limit("bytes")
    limits = [f"{macs / 1e6:g} M MACs"] if macs else []
    limits += [f"{size:,.0f} bytes at {study.precision}"] if size else []
    if limits:
        told["Limits"] = " and ".join(limits)
    if (found := baseline(study)) is not None:
        test = "" if found[2] is None else f", {percent(found[2])} % on test"
        told["Baseline"] = f"{found[0]}: {percent(found[1])} % on validation{test}"
    if teachers := study.manifest.get("teachers"):
        names = (f"{t.get('name')} {percent(t.get('val_macro_avg_acc'))} %" for t in teachers)
        told["Teachers"] = f"{', '.join(names)} on validation"
    if (volume := front.hypervolume(study)) is not None and volume > 0:
        told["Hypervolume"] = f"{volume:.3f} of the rectangle accuracy 0 to 100 %, MACs 0 to the limit"
    return told


def noise(study: Study) -> list[str]:
    """How large a difference must be to mean something (z = 1.96, difference of two single runs)."""
    resolved = 1.96 * math.sqrt(2) * SEED_SD_POINTS
    said = [
        "Every accuracy here is a single run. Training again with another seed scatters; the pooled "
        f"standard deviation was {SEED_SD_POINTS} points where it was measured (25 % split of TAU Urban "
        "Acoustic Scenes 2022 Mobile, not this study). At that scatter, two single runs must differ by "
        f"{resolved:.1f} points or so before the difference is resolved."
    ]
    clips, best = validation_clips(study), front.pareto_points(study)
    if clips and len(best):
        top = best["val_macro_avg_acc"].to_numpy(float).max()
        said.append(
            f"Error bars are one binomial standard error sqrt(p(1 - p)/n) on {clips:,} validation clips, "
            f"±{percent(float(standard_error(top, clips)))} points at the best point. Clips cut from one "
            "recording resemble each other, so the true error is larger."
        )
    said.append("The best of many points, chosen by its validation accuracy, looks better than it is.")
    return said


def warnings(study: Study) -> list[str]:
    """What a reader must know before trusting the front."""
    said = []
    status = study.manifest.get("status")
    if status in ("running", "interrupted"):
        said.append(f"The study is {status}: this front may still change.")
    counted = (study.manifest.get("trials") or {}).get("complete")
    rows = zip(study.points["trial_id"], study.points["status"], strict=True)
    found = len({trial for trial, status in rows if status == "complete"})
    if counted is not None and counted != found:
        said.append(f"study.json counts {counted} complete trials, points.csv holds {found}.")
    if beyond := _unfinished_beyond_front(study):
        said.append(
            f"{_plural(beyond, 'point')} of trials that are not complete would lie on the front; "
            "only complete trials are admitted."
        )
    return said


def _chosen_on(study: Study) -> str:
    if study.test is None:
        return "validation only, a held-out part of the training split; no point was measured on test"
    return f"validation; the test split was opened once, for the {_plural(len(study.test), 'chosen point')}"


def _why_empty(study: Study) -> str:
    file = study.path / "points.csv"
    if not len(study.points):
        return f"No feasible point yet: {file} {'holds no row' if file.exists() else 'is not there yet'}."
    reasons = {
        "infeasible": "over a limit",
        "unfinished": "of a trial that is not complete",
        "unmeasured": "without a finite accuracy and MACs",
    }
    found = roles(study).tolist()
    detail = ", ".join(f"{found.count(role)} {reason}" for role, reason in reasons.items() if role in found)
    return f"No feasible point yet: {_plural(len(found), 'row')} in {file}, {detail}."


def _unfinished_beyond_front(study: Study) -> int:
    """Points of unfinished trials that no point of the front dominates."""
    role = roles(study)
    admitted = np.isin(role, ("front", "unfinished"))
    values = front.objective_values(study)[admitted]
    mask = front.pareto_mask(values, list(study.objectives.values()))
    return int((mask & (role[admitted] == "unfinished")).sum())


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
