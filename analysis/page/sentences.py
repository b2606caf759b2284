"""Sentences that summarise a study, for the terminal and the HTML report.

A fact is omitted if the files of the study do not contain it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis import front, replicates
from analysis.results import REMEDY, Study
from analysis.summary import (
    baseline,
    millions,
    percent,
    roles,
    standard_error,
    trial_counts,
    validation_clips,
)

SEED_SD_POINTS = 1.29  # pooled standard deviation over seeds on the 25 % split of TAU 2022 Mobile (RESEARCH_PLAN.md)


def headline(study: Study) -> str:
    """Return one sentence on the front: its size, its most accurate and its smallest point, or why it is empty."""
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
    """Return the facts of a study as a dict, term -> text, e.g. "Limits" -> "30 M MACs and 128,000 bytes at fp16"."""
    trials, measured = trial_counts(study)
    rejected = (study.manifest.progress.trials or {}).get("rejected")
    facts = {"Chosen on": _chosen_on(study), "Trials": _listed(trials) or "none trained yet"}
    facts["Trials"] += f", {rejected} rejected before training" if rejected else ""
    facts["Trials"] += "" if study.points_missing else f"; {_plural(measured, 'measured point')}"
    behind = _trials_of_front(study)
    if set(behind) - {"complete"}:
        facts["Trials of the front"] = f"{_listed(behind)}; a measured point counts, however its trial ended"
    if study.replicated:
        facts["Seeds"] = _seeds(study)
    macs, size = study.limits.macs, study.limits.bytes
    limits = [f"{macs / 1e6:g} M MACs"] if macs else []
    limits += [f"{size:,.0f} bytes at {study.precision}"] if size else []
    if limits:
        facts["Limits"] = " and ".join(limits)
    if (found := baseline(study)) is not None:
        test = "" if found[2] is None else f", {percent(found[2])} % on test"
        facts["Baseline"] = f"{found[0]}: {percent(found[1])} % on validation{test}"
    if teachers := study.manifest.prepared.teachers:
        names = (f"{teacher.name} {percent(teacher.val_macro_avg_acc)} %" for teacher in teachers)
        facts["Teachers"] = f"{', '.join(names)} on validation"
    if refit := _refit(study):
        facts["Refit"] = refit
    if (volume := front.hypervolume(study)) is not None and volume > 0:
        facts["Hypervolume"] = f"{volume:.3f} of the rectangle from 0 to 100 % accuracy and from 0 MACs to the limit"
    return facts


def noise(study: Study) -> list[str]:
    """Return sentences on how uncertain the accuracies are, and which differences between points are significant."""
    if study.replicated:
        return _noise_of_means(study)
    resolved = 1.96 * math.sqrt(2) * SEED_SD_POINTS
    lines = [
        "Every accuracy here is a single run, and accuracy varies with the training seed. A separate measurement gave "
        f"a pooled standard deviation of {SEED_SD_POINTS} percentage points (25 % split of TAU Urban Acoustic Scenes "
        "2022 Mobile, not this study). With this deviation, the difference of two single runs is significant above "
        f"about {resolved:.1f} percentage points."
    ]
    clips, best = validation_clips(study), front.pareto_points(study)
    if clips and len(best):
        top = best["val_macro_avg_acc"].to_numpy(float).max()
        lines.append(
            f"Error bars are one binomial standard error sqrt(p(1 - p)/n) on {clips:,} validation clips, "
            f"±{percent(float(standard_error(top, clips)))} percentage points for the best network. Clips cut "
            "from the same recording are similar, so the true error is larger."
        )
    lines.append(
        "The best of many points, chosen by its validation accuracy, looks better than it is. --confirm 3 trains the "
        "configurations of the front with more seeds; the front is then made of means."
    )
    return lines


def warnings(study: Study) -> list[str]:
    """Return warnings about the front as sentences; an empty list if there is no reason for a warning.

    Reasons for warnings: the study is not complete; the option --allow-changes accepted a change of code, space or
    data; study.json and points.csv have different numbers of complete trials; the study has replicates, and a point
    with only one seed would be on the front if single runs were compared with means; a mean on the front lacks some
    seeds of its configuration.
    """
    lines, progress = [], study.manifest.progress
    if progress.status in ("running", "interrupted"):  # a study whose driver was killed is "running", too
        lines.append("The study is not complete yet: this front may still change.")
    lines += [
        f"--allow-changes accepted a change during the study ({change.time}): {change.what}. Points measured before "
        "and after it may not be comparable."
        for change in progress.changes
    ]
    counted = (progress.trials or {}).get("complete")
    rows = zip(study.raw["trial_id"], study.raw["status"], strict=True)
    found = len({trial for trial, status in rows if status == "complete"})
    closed = progress.status in (
        "complete",
        "interrupted",
    )  # while a study runs, the counts in study.json are out of date
    if closed and counted is not None and counted != found and not study.points_missing:
        lines.append(f"study.json counts {counted} complete trials, but points.csv contains {found}; {_remedy(study)}.")
    if beyond := _singles_beyond_front(study):
        lines.append(
            f"{_plural(beyond, 'point')} with one seed would be on the front if single runs were compared with "
            "means. This is not done, because the best of many single runs may be good by chance: only configurations "
            "with two or more seeds can be on the front."
        )
    if partial := _partial_means(study):
        means = "is a mean" if partial == 1 else "are means"
        lines.append(
            f"{_plural(partial, 'point')} of the front {means} over a part of the configuration's seeds: the other "
            "trials were stopped early, failed or crashed before that step. Early stopping ends the weaker seeds, so "
            "such a mean may be too high."
        )
    return lines


def _chosen_on(study: Study) -> str:
    if study.test is None:
        return "validation only, a held-out part of the training split; no point was measured on test"
    times = len(study.manifest.progress.test_opened) or 1
    opened = "once" if times == 1 else f"{times} times"
    text = f"validation; the test split was opened {opened}, for the {_plural(len(study.test), 'chosen point')}"
    if study.raw_refitted is not None:
        text += f" and {_plural(len(study.raw_refitted), 'refitted network')}"
    return text


def _refit(study: Study) -> str:
    """Return what the training on all clips changed on the test split, as text; empty without refitted networks."""
    if study.refitted is None or study.test is None:
        return ""
    both = study.refitted.merge(study.test, on=["trial_id", "step"])
    if both.empty:
        return ""
    gain = (both["refitted_test_macro_avg_acc"] - both["test_macro_avg_acc"]).mean()
    top = both.loc[both["refitted_test_macro_avg_acc"].idxmax()]
    seeds = _plural(int(top["refitted_test_n_seeds"]), "seed")
    return (
        f"trained again on all clips, {_plural(len(both), 'point')} changed by {100 * gain:+.1f} percentage points on "
        f"test on average; best refitted network {percent(top['refitted_test_macro_avg_acc'])} % ({seeds}), the "
        f"search's network of this point {percent(top['test_macro_avg_acc'])} %"
    )


def _seeds(study: Study) -> str:
    """Return the numbers of seeds in a study as text, e.g. "3 for 10 configurations, 1 for 2 configurations; ...".

    If the prune steps of a configuration have different numbers of seeds, the largest number is taken.
    """
    seeds: dict[str, int] = {}
    for config, n in zip(study.points["trial_id"], study.points["n_seeds"], strict=True):
        seeds[config] = max(n, seeds.get(config, 0))
    counts = sorted(Counter(n for n in seeds.values() if n).items(), reverse=True)
    shown = ", ".join(f"{n} for {_plural(number, 'configuration')}" for n, number in counts)
    return f"{shown}; the front contains only means over two or more seeds"


def _noise_of_means(study: Study) -> list[str]:
    best = front.pareto_points(study)
    lines = [
        "Every accuracy of the front is a mean over all seeds that measured this step (a seed sets initial weights, "
        "order of the clips and augmentation); its interval is Student's t at 95 %. Two points whose intervals overlap "
        "much cannot be distinguished."
    ]
    if len(best):
        low, high, sd = (best[f"val_macro_avg_acc_{end}"].to_numpy(float) for end in ("low", "high", "std"))
        lines.append(
            f"Each point of the front is a mean over at least {min(best['n_seeds'].tolist())} seeds; the pooled "
            f"standard deviation of single runs is {percent(np.sqrt((sd**2).mean()))} percentage points, and the "
            f"widest interval is {percent((high - low).max())} percentage points."
        )
    lines.append(
        "All seeds use the same validation clips, so the intervals do not include the variation between recordings. "
        "The points of the front were chosen by these values, so the front still looks slightly better than it is. A "
        "configuration with one seed is not a candidate, because its single run may be good by chance."
    )
    return lines


def _why_empty(study: Study) -> str:
    file = study.path / "points.csv"
    if study.points_missing:
        return f"No front can be shown: {file} is missing, but trials were trained; {_remedy(study)}."
    if not len(study.points):
        return f"No feasible point yet: {file} {'has no rows' if file.exists() else 'does not exist'}."
    reasons = {
        "infeasible": "over a limit",
        "single": "with one seed in a study with replicates",
        "unmeasured": "without finite objectives",
    }
    found = roles(study).tolist()
    detail = _listed({reason: found.count(role) for role, reason in reasons.items()})
    return f"No feasible point yet: {_plural(len(found), 'row')} in {file}, {detail}."


def _remedy(study: Study) -> str:
    """Return how to get a correct points.csv, as a part of a sentence. Without a journal, no command writes it."""
    if study.manifest.resolved.code:
        return REMEDY
    return "restore points.csv from a copy, because this study has no journal from which it could be written again"


def _trials_of_front(study: Study) -> Counter[str]:
    """Return the number of trials per status; only trials with a network on the front are counted."""
    status: dict[str, str] = {}
    for point in front.pareto_points(study).to_dict("records"):
        behind = replicates.networks(study.raw, point["trial_id"], point["step"])
        status |= dict(zip(behind["trial_id"], behind["status"], strict=True))
    return Counter(status.values())


def _singles_beyond_front(study: Study) -> int:
    """Return how many points with only one seed would be on the front if single runs were compared with means.

    In a study with replicates, only means over two or more seeds can be on the front. Without replicates, all points
    are single runs that can be on the front, and the number is 0.
    """
    role = roles(study)
    admitted = np.isin(role, ("front", "single"))
    values = front.objective_values(study)[admitted]
    mask = front.pareto_mask(values, list(study.objectives.values()))
    return int((mask & (role[admitted] == "single")).sum())


def _partial_means(study: Study) -> int:
    """Return the number of partial means on the front: means over only a part of the seeds of their configuration.

    A mean is partial if a trial of its configuration was stopped early, failed or crashed before the prune step of the
    point. Trials that ended before their first measurement have no row in points.csv. So in a complete study, each mean
    with fewer seeds than requested is partial, too. In an unfinished study, such a mean does not count as partial,
    because a trial without a row may still be training.
    """
    if not study.replicated:
        return 0
    trials: dict[str, dict[str, Any]] = {row["trial_id"]: row for row in study.raw.to_dict("records")}
    ended: dict[str, set[str]] = {}  # configuration -> trials that will not measure another step
    requested: dict[str, int] = {}  # configuration -> number of seeds
    for name, row in trials.items():
        config = row["config_id"]
        if row["status"] not in ("complete", "running"):
            ended.setdefault(config, set()).add(name)
        requested[config] = max(requested.get(config, study.manifest.requested.seeds_per_config), row["replicate"] + 1)
    partial = 0
    for point in front.pareto_points(study).to_dict("records"):
        config = point["trial_id"]
        behind = replicates.networks(study.raw, config, point["step"])["trial_id"].tolist()
        lacks = study.manifest.progress.status == "complete" and len(behind) < requested[config]
        partial += lacks or bool(ended.get(config, set()) - set(behind))
    return partial


def _listed(counts: Mapping[str, int]) -> str:
    """Return a dict of counts as text, e.g. "12 complete, 4 stopped early"; counts of 0 are omitted."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
