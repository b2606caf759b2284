"""Sentences about a comparison: warnings, what the uncertainty contains, and the settings that differ."""

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from analysis import front, summary
from analysis.compare.comparable import method_of
from analysis.compare.comparison import Comparison
from analysis.compare.resampling import RESAMPLES
from analysis.compare.verdict import LEAST_RUNS, THRESHOLD
from analysis.page.sentences import SEED_SD_POINTS
from analysis.results import Study
from analysis.summary import DASH

MANY = 2  # a study with this many times the candidates of another has an advantage by chance that is worth a warning


def warnings(compared: Comparison) -> list[str]:
    """Return sentences about everything that makes the comparison less certain, or the studies less equal."""
    return [*_of_each_study(compared), *_of_all_studies(compared)]


def _of_each_study(compared: Comparison) -> Iterator[str]:
    for _, label, study in compared.studies:
        progress = study.manifest.progress
        if progress.status in ("new", "running", "interrupted"):
            yield f"{label} is not complete yet (status: {progress.status}): its front may still change."
        if study.points_missing:
            yield f"{label}: points.csv is missing, although trials were trained, so it is compared without points."
        elif not len(compared.single[label].runs[0].macs):
            yield f"{label} has no feasible, measured point that may be on a front."
        for change in progress.changes:
            yield f"{label}: --allow-changes accepted a change during the study ({change.time}): {change.what}."


def _of_all_studies(compared: Comparison) -> Iterator[str]:
    studies = compared.studies
    frontends: dict[str, list[str]] = {}
    for _, label, study in studies:
        text = ", ".join(f"{key} {value}" for key, value in sorted(study.manifest.resolved.frontend.items()))
        frontends.setdefault(text or "unknown", []).append(label)
    if len(frontends) > 1:
        named = "; ".join(f"{' and '.join(names)}: {text}" for text, names in frontends.items())
        yield (
            f"The front-ends differ ({named}). MACs are those of the networks only and do not contain the computation "
            "of the log-mel features, whose cost differs between these front-ends."
        )
    lacking = [label for _, label, study in studies if not study.manifest.prepared.dataset.fingerprint]
    if lacking:
        yield (
            f"study.json of {_names(lacking, compared)} has no fingerprint of the data, so that equal data could not "
            "be verified: only the subset, the numbers of clips and the seed of the hold-out were compared."
        )
    kinds: dict[bool, list[str]] = {}
    for _, label, study in studies:
        if len(study.points):
            kinds.setdefault(study.replicated, []).append(label)
    if len(kinds) > 1:
        yield (
            f"The points of {', '.join(kinds[True])} are means over seeds, and those of {', '.join(kinds[False])} are "
            "single runs. The best of many single runs is too high by chance, so single runs have an advantage. "
            "--confirm trains the front of a study with more seeds."
        )
    counts = {label: int(front.candidates(study).sum()) for _, label, study in studies}
    counts = {label: n for label, n in counts.items() if n}
    if len(counts) > 1 and max(counts.values()) >= MANY * min(counts.values()):
        most, least = max(counts, key=lambda label: counts[label]), min(counts, key=lambda label: counts[label])
        yield (
            f"{most} has {counts[most]} candidates for the front and {least} has {counts[least]}. The best of more "
            "networks is higher by chance alone; the resamples do not correct this."
        )
    for (first, one, left), (second, other, right) in combinations(studies, 2):
        same_seed = left.manifest.requested.seed == right.manifest.requested.seed
        if first.key != second.key and same_seed and method_of(left) == method_of(right):
            yield f"{one} and {other} have the same settings and the same seed; they are shown as two methods."
    changed = [
        (one, other) for (_, one, left), (_, other, right) in combinations(studies, 2) if _other_code(left, right)
    ]
    if changed:
        one, other = changed[0]
        yield f"{one} and {other} were made with different code, which may explain a part of a difference."
    if others := [key for key in studies[0][2].objectives if key not in ("val_macro_avg_acc", "macs")]:
        yield f"The studies have the further objective {', '.join(others)}, which this comparison does not show."
    if not compared.limit:
        yield "The studies have no MACs limit, so there is no common reference point and no hypervolume."


def _other_code(left: Study, right: Study) -> bool:
    codes = left.manifest.resolved.code, right.manifest.resolved.code
    return all(codes) and codes[0] != codes[1]


def uncertainty(compared: Comparison) -> list[str]:
    """Return sentences on the resamples: what they vary, what they do not contain, and what a share means."""
    n = compared.n_runs
    lines = []
    if n > 1:
        few = "" if n >= LEAST_RUNS else f" With only {n} runs, the intervals are rough."
        lines.append(
            f"Each method was run {n} times with different seeds. The shares, and the intervals of the methods, come "
            f"from {RESAMPLES:,} resamples of the runs: {n - 1} of {n} seeds are drawn with replacement, the same for "
            "all methods (Rao and Wu 1988). They contain the luck of the search, the training seeds and the choice of "
            f"the validation clips, as far as {n} runs show them. They do not contain other data sets.{few}"
        )
    sources = {sampled.source for sampled in compared.single.values()}
    subject = "In the table of studies, the intervals" if n > 1 else "The shares and intervals"
    if "seeds" in sources:
        names = _names([label for label, found in compared.single.items() if found.source == "seeds"], compared)
        lines.append(
            f"{subject} of {names} come from {RESAMPLES:,} resamples of the seeds: the deviations of the seeds from "
            "their means, pooled over all configurations of the study, are drawn with replacement. They contain the "
            "training seeds. They do not contain the finite number of validation clips, which are the same for all "
            "seeds, and not the luck of the search: another run would find other networks. Networks are treated as "
            "independent."
        )
    if "noise" in sources:
        lines.append(_noise_sentence(compared, subject))
    if n == 1 and compared.verdicts:
        lines.append(
            "The networks of each front were chosen by the same values that are compared, so both fronts look better "
            f"than they are. To compare methods and not single runs, repeat each search with {LEAST_RUNS} seeds or "
            "more (--seed) and give all studies to this command."
        )
    if not compared.verdicts:
        return lines
    lines.append(
        f"The verdict names a range of MACs if one front is above the other in at least {100 * THRESHOLD:.0f} % of the "
        "resamples at each number of MACs." + _by_chance(n)
    )
    return lines


def _names(labels: list[str], compared: Comparison) -> str:
    return "all studies" if len(labels) == len(compared.studies) else ", ".join(labels)


def _by_chance(runs: int) -> str:
    """Return how often a range is decided by chance, as a sentence; the verdict states it for few runs."""
    if 1 < runs < LEAST_RUNS:
        return ""
    subject = "networks" if runs == 1 else "methods"
    return (
        f" For two equal {subject}, this happens by chance in about 1 of 10 cases at a given number of MACs, and more "
        "often somewhere in the range, or in one of several comparisons."
    )


def _noise_sentence(compared: Comparison, subject: str) -> str:
    chosen = [(label, study) for _, label, study in compared.studies if compared.single[label].source == "noise"]
    clips = {summary.validation_clips(study) for _, study in chosen}
    known = sorted(f"{number:,}" for number in clips if number)
    first = (
        f"the finite number of validation clips ({', '.join(known)}; binomial standard error), and " if known else ""
    )
    lack = " The number of validation clips is not known for every study." if None in clips else ""
    return (
        f"{subject} of {_names([label for label, _ in chosen], compared)} come from {RESAMPLES:,} resamples with added "
        f"noise, because each configuration has one seed. They contain {first}the training seed, with a standard "
        f"deviation of {SEED_SD_POINTS} percentage points from a separate measurement, not from these studies.{lack} "
        "They do not contain the luck of the search (another run would find other networks). Networks and clips are "
        "treated as independent, although all networks are measured on the same clips, and clips of one recording "
        "resemble each other, so the intervals may be too narrow."
    )


def differing_settings(compared: Comparison) -> dict[str, list[str]]:
    """Return the settings in which the methods differ: name -> its value in each method, as text."""
    tables = [_settings(method.runs[0]) for method in compared.methods]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name, DASH) for table in tables] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _settings(study: Study) -> dict[str, str]:
    requested, resolved, prepared = study.manifest.requested, study.manifest.resolved, study.manifest.prepared
    space = resolved.space.get("parameters")
    shown: dict[str, Any] = {
        "space": resolved.space.get("name"),
        "sampler": requested.sampler,
        "scheduler": requested.scheduler,
        "configurations": requested.num_samples,
        "seeds per configuration": requested.seeds_per_config,
        "overrides": " ".join(requested.overrides),
        "warm start": ", ".join(requested.warm_start),
        "teachers": ", ".join(teacher.name for teacher in prepared.teachers),
        **{f"frontend.{key}": value for key, value in resolved.frontend.items()},
        **{f"range of {key}": json.dumps(spec) for key, spec in (space if isinstance(space, dict) else {}).items()},
    }
    return {name: DASH if value in (None, "") else str(value) for name, value in shown.items()}
