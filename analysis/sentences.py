"""What a study says in sentences, for the terminal and the page.

A fact that the study does not hold is left out; nothing is filled in.
"""

import math
from collections import Counter

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
    if study.replicated:
        ends = f"means over seeds, {ends}"
    found = _plural(len(best), "non-dominated feasible point")
    searched = f"{_plural(sum(trials.values()), 'trial')}, {_plural(measured, 'measured point')}"
    return f"{found} from {searched}; {ends}."


def facts(study: Study) -> dict[str, str]:
    """Term to text: how the front was chosen, trials, limits, baseline, teachers, hypervolume."""
    trials, measured = trial_counts(study)
    detail = ", ".join(f"{number} {status}" for status, number in trials.items())
    rejected = (study.manifest.progress.trials or {}).get("rejected")
    told = {"Chosen on": _chosen_on(study), "Trials": detail or "none trained yet"}
    told["Trials"] += f", {rejected} rejected before training" if rejected else ""
    told["Trials"] += f"; {_plural(measured, 'measured point')}"
    if study.replicated:
        told["Seeds"] = _seeds(study)
    macs, size = study.limits.macs, study.limits.bytes
    limits = [f"{macs / 1e6:g} M MACs"] if macs else []
    limits += [f"{size:,.0f} bytes at {study.precision}"] if size else []
    if limits:
        told["Limits"] = " and ".join(limits)
    if (found := baseline(study)) is not None:
        test = "" if found[2] is None else f", {percent(found[2])} % on test"
        told["Baseline"] = f"{found[0]}: {percent(found[1])} % on validation{test}"
    if teachers := study.manifest.prepared.teachers:
        names = (f"{teacher.name} {percent(teacher.val_macro_avg_acc)} %" for teacher in teachers)
        told["Teachers"] = f"{', '.join(names)} on validation"
    if (volume := front.hypervolume(study)) is not None and volume > 0:
        told["Hypervolume"] = f"{volume:.3f} of the rectangle accuracy 0 to 100 %, MACs 0 to the limit"
    return told


def noise(study: Study) -> list[str]:
    """How large a difference must be to mean something (z = 1.96, difference of two single runs)."""
    if study.replicated:
        return _noise_of_means(study)
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
    said.append(
        "The best of many points, chosen by its validation accuracy, looks better than it is. Training the front "
        "with more seeds (--confirm 3) draws it again from means."
    )
    return said


def warnings(study: Study) -> list[str]:
    """What a reader must know before trusting the front."""
    said = []
    if study.manifest.progress.status in ("running", "interrupted"):  # a killed driver leaves "running"
        said.append("The study is not complete yet: this front may still change.")
    counted = (study.manifest.progress.trials or {}).get("complete")
    rows = zip(study.raw["trial_id"], study.raw["status"], strict=True)
    found = len({trial for trial, status in rows if status == "complete"})
    if counted is not None and counted != found:
        said.append(f"study.json counts {counted} complete trials, points.csv holds {found}.")
    if beyond := _beyond_front(study, "unfinished"):
        said.append(
            f"{_plural(beyond, 'point')} of trials that are not complete would lie on the front; "
            "only complete trials are admitted."
        )
    if beyond := _beyond_front(study, "single"):
        said.append(
            f"{_plural(beyond, 'point')} with one seed would lie on the front; a single draw, the luckiest of many, is "
            "not compared with means, so only configurations with two seeds or more are admitted."
        )
    if partly := _partly_complete(study):
        said.append(
            f"{_plural(partly, 'configuration')} of those with two seeds or more had seeds that were stopped early or "
            "failed: the mean over the others may be too good."
        )
    return said


def _chosen_on(study: Study) -> str:
    if study.test is None:
        return "validation only, a held-out part of the training split; no point was measured on test"
    times = len(study.manifest.progress.test_opened) or 1
    opened = "once" if times == 1 else f"{times} times"
    return f"validation; the test split was opened {opened}, for the {_plural(len(study.test), 'chosen point')}"


def _seeds(study: Study) -> str:
    """How many configurations have how many complete seeds."""
    seeds = study.points.drop_duplicates("trial_id")["n_seeds"].tolist()
    counts = sorted(Counter(n for n in seeds if n).items(), reverse=True)
    shown = ", ".join(f"{n} for {_plural(number, 'configuration')}" for n, number in counts)
    return f"{shown}; the front is drawn from means over two seeds or more"


def _noise_of_means(study: Study) -> list[str]:
    best = front.pareto_points(study)
    said = [
        "Every accuracy of the front is a mean over complete trainings with different seeds (initial weights, order of "
        "the clips, augmentation); its interval is Student's t at 95 %. Two points whose intervals overlap much are "
        "not told apart."
    ]
    if len(best):
        low, high, sd = (best[f"val_macro_avg_acc_{end}"].to_numpy(float) for end in ("low", "high", "std"))
        said.append(
            f"On the front {min(best['n_seeds'].tolist())} seeds at least stand behind a point; the pooled standard "
            f"deviation of single trainings is {percent(np.sqrt((sd**2).mean()))} points, the widest interval "
            f"{percent((high - low).max())} points."
        )
    said.append(
        "All seeds share the validation clips: the intervals say nothing of other recordings. The points of the front "
        "were chosen by these figures, so the front as a whole still looks a little better than it is; a configuration "
        "with one seed is no candidate beside them, since its single draw may be the luckiest of many."
    )
    return said


def _why_empty(study: Study) -> str:
    file = study.path / "points.csv"
    if not len(study.points):
        return f"No feasible point yet: {file} {'holds no row' if file.exists() else 'is not there yet'}."
    reasons = {
        "infeasible": "over a limit",
        "unfinished": "of a trial that is not complete",
        "single": "with one seed in a study with replicates",
        "unmeasured": "without a finite accuracy and MACs",
    }
    found = roles(study).tolist()
    detail = ", ".join(f"{found.count(role)} {reason}" for role, reason in reasons.items() if role in found)
    return f"No feasible point yet: {_plural(len(found), 'row')} in {file}, {detail}."


def _beyond_front(study: Study, part: str) -> int:
    """Points of that role, not admitted to the front, that no point of it dominates."""
    role = roles(study)
    admitted = np.isin(role, ("front", part))
    values = front.objective_values(study)[admitted]
    mask = front.pareto_mask(values, list(study.objectives.values()))
    return int((mask & (role[admitted] == part)).sum())


def _partly_complete(study: Study) -> int:
    """Configurations of an ended study with a mean over seeds that lacks seeds which did not complete.

    A trial that ended before its first measured network is in no table, so gaps are counted, not trials.
    """
    if not study.replicated or study.manifest.progress.status != "complete":
        return 0
    asked = dict.fromkeys(study.raw["config_id"], study.manifest.asked.seeds_per_config)
    for config, replicate in zip(study.raw["config_id"], study.raw["replicate"], strict=True):
        asked[config] = max(asked[config], replicate + 1)
    seeds = dict(zip(study.points["trial_id"], study.points["n_seeds"], strict=True))
    return sum(2 <= n < asked[config] for config, n in seeds.items())


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
