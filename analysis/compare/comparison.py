"""Compare several studies: methods, resampled fronts, attainment surfaces and verdicts, as one object.

compared = compare_studies([load_study("runs/a"), load_study("runs/b")])
[verdict.sentence(v) for v in compared.verdicts]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import front, summary
from analysis.compare import attainment, comparable, resampling, verdict
from analysis.compare.attainment import Staircase
from analysis.compare.comparable import Method
from analysis.compare.resampling import Sampled
from analysis.results import Study


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison. `sampled` and `methods` have the same order; the first method is the reference."""

    methods: tuple[Method, ...]
    sampled: tuple[Sampled, ...]
    single: dict[str, Sampled]  # label of a run -> resamples of this run alone
    verdicts: tuple[verdict.Verdict, ...]  # on the first method and each other one

    @property
    def studies(self) -> list[tuple[Method, str, Study]]:
        """All studies as (method, label, study), in the order of the methods."""
        return [(m, label, study) for m in self.methods for label, study in zip(m.labels, m.runs, strict=True)]

    @property
    def n_runs(self) -> int:
        """Number of runs of each method."""
        return len(self.methods[0].runs)

    @property
    def limit(self) -> float | None:
        """The MACs limit of all studies."""
        return self.methods[0].runs[0].limits.macs


def compare_studies(studies: Sequence[Study], seed: int = resampling.SEED) -> Comparison:
    """Return the comparison of two or more `studies`; `seed` is that of the resamples.

    Raise ResultsError if a comparison would be false (`analysis.compare.comparable`).
    """
    methods = comparable.grouped(studies)
    rng = np.random.default_rng(seed)
    sampled = resampling.resampled(methods, rng)
    single = {}
    for method, found in zip(methods, sampled, strict=True):
        for label, study in zip(method.labels, method.runs, strict=True):
            single[label] = found if len(method.runs) == 1 else resampling.resampled_study(study, rng)
    named = [(method.key, found) for method, found in zip(methods, sampled, strict=True)]
    return Comparison(tuple(methods), tuple(sampled), single, tuple(verdict.verdicts(named)))


def surfaces(sampled: Sampled) -> dict[str, tuple[int, Staircase]]:
    """Return the attainment surfaces of a method: name -> (number of runs that attain it, its corners).

    The names are median, best and worst, or only "front" if the method has one run.
    """
    n = len(sampled.runs)
    if n == 1:
        return {"front": (1, sampled.runs[0])}
    counts = {"median": attainment.median(n), "best": 1, "worst": n}
    return {name: (k, attainment.surface(sampled.runs, k)) for name, k in counts.items()}


def study_table(compared: Comparison) -> pd.DataFrame:
    """Return one row per study: method, status, sizes, hypervolume with its 95 % interval, best and smallest point.

    Accuracies and hypervolumes are shares in [0, 1]. Intervals ending in `_low` and `_high` are those of this study
    alone; `method_hypervolume` is the mean over the runs of the method. A value that does not exist is NaN.
    """
    rows = []
    of_method = dict(zip((method.key for method in compared.methods), compared.sampled, strict=True))
    for method, label, study in compared.studies:
        alone, whole = compared.single[label], of_method[method.key]
        best = alone.runs[0]
        volume, several = _estimate("hypervolume", alone), _estimate("method_hypervolume", whole)
        row = {
            "method": method.key,
            "study": label,
            "status": study.manifest.progress.status,
            "seed": study.manifest.requested.seed,
            "configurations": study.manifest.requested.num_samples,
            "candidates": int(front.candidates(study).sum()),
            "front_points": len(best.macs),
            "uncertainty": alone.source,
            **volume,
            "best_val_macro_avg_acc": best.accuracy[-1] if len(best.macs) else math.nan,
            "best_val_macro_avg_acc_low": math.nan,
            "best_val_macro_avg_acc_high": math.nan,
            "best_macs": best.macs[-1] if len(best.macs) else math.nan,
            "smallest_macs": best.macs[0] if len(best.macs) else math.nan,
            "smallest_val_macro_avg_acc": best.accuracy[0] if len(best.macs) else math.nan,
            "method_runs": len(method.runs),
            **several,
        }
        if len(best.macs) and alone.values is not None:
            low, high = np.quantile(alone.values[:, -1], [0.025, 0.975])
            row |= {"best_val_macro_avg_acc_low": max(0.0, low), "best_val_macro_avg_acc_high": min(1.0, high)}
        rows.append(row)
    return pd.DataFrame(rows)


def surface_table(compared: Comparison) -> pd.DataFrame:
    """Return one row per corner of each attainment surface: method, surface, number of runs, MACs and accuracy."""
    columns = ["method", "surface", "attained_by", "runs", "macs", "val_macro_avg_acc"]
    rows = [
        (method.key, name, k, len(sampled.runs), macs, accuracy)
        for method, sampled in zip(compared.methods, compared.sampled, strict=True)
        for name, (k, corners) in surfaces(sampled).items()
        for macs, accuracy in zip(corners.macs, corners.accuracy, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def with_interval(value: float, low: float, high: float, scale: float = 1.0) -> str:
    """Return `value` times `scale` and its interval as text, rounded to two digits of half the interval's width.

    Examples: 0.512 (0.498-0.527); a dash if the value is missing; the value alone if the interval is unknown.
    """
    if summary.absent(value):
        return summary.DASH
    if summary.absent(low) or summary.absent(high):
        return f"{scale * value:.3g}"
    half = scale * (high - low) / 2
    digits = min(4, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3
    text = [f"{scale * number:.{digits}f}" for number in (value, low, high)]
    return f"{text[0]} ({text[1]}{summary.DASH}{text[2]})"


def _estimate(name: str, sampled: Sampled) -> dict[str, float]:
    found, interval = sampled.hypervolume, sampled.interval or (math.nan, math.nan)
    return {name: math.nan if found is None else found, f"{name}_low": interval[0], f"{name}_high": interval[1]}
