"""How reliable the ranks of the networks are: rank correlations with bootstrap intervals.

Three questions are answered from the files of a study. Does validation rank the networks as test does? Does a short
training rank the configurations as a long one, in another study? Does the accuracy at an early epoch, where a scheduler
decides, rank the trials as the end of their dense training?
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from analysis.findings.details import learning_curves
from analysis.results import Study, load_study, take
from analysis.typed_json import ResultsError

LEAST = 5  # pairs; with fewer, no correlation is computed
RESAMPLES = 2000
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation `rho` of `n` pairs, with a 95 % bootstrap interval (percentiles)."""

    n: int
    rho: float
    low: float
    high: float


def spearman(x: _Floats, y: _Floats) -> float:
    """Return Spearman's rank correlation of `x` [N] and `y` [N] with mean ranks for ties; NaN if one is constant."""
    a, b = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def correlation(x: _Floats, y: _Floats) -> Correlation | None:
    """Return the rank correlation of the pairs of `x` [N] and `y` [N] that are finite.

    The interval is from bootstrap samples of the pairs (Efron 1979). None if there are fewer than `LEAST` pairs, or if
    all values of one side are equal.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < LEAST or math.isnan(rho := spearman(x, y)):
        return None
    rng = np.random.default_rng(0)
    samples = (rng.integers(len(x), size=len(x)) for _ in range(RESAMPLES))
    found = np.array([spearman(x[sample], y[sample]) for sample in samples])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Correlation(len(x), rho, float(low), float(high))


def validation_and_test(study: Study) -> Correlation | None:
    """Return the rank correlation of validation and test accuracy over the networks that were tested."""
    tested = study.with_test()
    if "test_macro_avg_acc" not in tested:
        return None
    return correlation(tested["val_macro_avg_acc"].to_numpy(float), tested["test_macro_avg_acc"].to_numpy(float))


def between_studies(study: Study) -> tuple[str, Correlation | None, int] | None:
    """Return how well `study` ranks networks as the study `study.compare_with` does; None if there is no such study.

    The result is (name of the other study, correlation of the validation accuracies, number of pairs). A pair is the
    same configuration after the same prune step in both studies. Raise ResultsError if the studies do not search the
    same parameters, or if no configuration is in both.
    """
    if study.compare_with is None:
        return None
    other = load_study(study.compare_with)
    columns, theirs = study.prefixed("config/"), other.prefixed("config/")
    if set(columns) != set(theirs):
        differing = sorted(set(columns) ^ set(theirs))[0].removeprefix("config/")
        raise ResultsError(
            f"--compare-with {study.compare_with}: only one of the two studies searched {differing}; expected a study "
            "of the same parameters: choose another one"
        )
    known = {_key(point, columns): point["val_macro_avg_acc"] for point in other.points.to_dict("records")}
    pairs = [
        (point["val_macro_avg_acc"], known[key])
        for point in study.points.to_dict("records")
        if (key := _key(point, columns)) in known
    ]
    if not pairs:
        raise ResultsError(
            f"--compare-with {study.compare_with}: no configuration is in both studies; expected the same ones with "
            "another training: start the second study with --warm-start or the same --seed"
        )
    ours, others = np.asarray(pairs, dtype=float).T
    return other.name, correlation(ours, others), len(pairs)


def at_epochs(study: Study) -> tuple[list[tuple[int, float]], int]:
    """Return how well the best accuracy up to each epoch ranks the trials as the end of their dense training does.

    The result is ([(epoch, Spearman's correlation), ...], number of trials). The end is the mean of the last three
    dense epochs, which is less noisy than one. Only trials whose dense network was measured are compared; those that a
    scheduler stopped before are missing. The list is empty if there are fewer than `LEAST` trials or no curves.
    """
    dense = take(study.raw, (study.raw["step"] == 0).to_numpy(bool))
    curves = learning_curves(study, set(map(str, dense["trial_id"])))
    lengths = [len(curve.dense()) for curve in curves.values()]
    longest = max(lengths, default=0)
    complete = [curve for curve in curves.values() if len(curve.dense()) == longest]
    if len(complete) < LEAST or longest < 4:
        return [], len(complete)
    values = np.array([curve.dense() for curve in complete])
    final = values[:, -3:].mean(axis=1)
    best = np.maximum.accumulate(values, axis=1)
    found = [(epoch, spearman(best[:, epoch - 1], final)) for epoch in range(1, longest)]
    return [(epoch, rho) for epoch, rho in found if math.isfinite(rho)], len(complete)


def _key(point: dict[Any, Any], columns: list[str]) -> str:
    """Return what identifies the network of `point`: its configuration and its prune step, as text."""
    return json.dumps([point["step"], *(_plain(point[column]) for column in columns)], default=str)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else str(value)
