"""How uncertain fronts and hypervolumes are: bootstrap resamples of runs, of seeds, or of measurement noise.

    sampled = resampled(methods, np.random.default_rng(SEED))       # one `Sampled` per method
    sampled[0].interval                                             # 95 % interval of the hypervolume

Three sources of uncertainty are used; the page states which one, and what it does not contain.

- **runs**: each method was run several times with different seeds. A resample draws n - 1 of the n seeds with
  replacement, the same ones for all methods, because runs with the same seed have the same validation clips. The value
  of a method is the mean over these runs. With n - 1 draws instead of n, the variance of a resampled mean is s^2 / n,
  as it should be, and not smaller (Rao and Wu 1988, "Resampling inference with complex survey data").
- **seeds**: one run, with several seeds per configuration. The residuals of the seeds from their means, scaled by
  sqrt(n / (n - 1)), are pooled over the configurations of the study; a resample adds the mean of n drawn residuals to a
  point that is a mean over n seeds (Davison and Hinkley 1997, section 6.2.3). Few seeds per configuration suffice,
  because all share one pool.
- **noise**: one run with single seeds. A resample adds normal noise to each point, with the variance
  p (1 - p) / n_validation (clips) + 0.0129^2 (training seed, measured separately: `SEED_SD_POINTS`).

For "seeds" and "noise", each resample has the networks of the original front. If the front were chosen again among
resampled values, the best of many noisy points would be chosen, and each resample would lie above the front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis import front, replicates, summary
from analysis.compare.attainment import Floats, Staircase, staircase
from analysis.compare.comparable import Method
from analysis.page.sentences import SEED_SD_POINTS
from analysis.results import Study, take

RESAMPLES = 1000
SEED = 0  # of the generator, so that two reports on the same files are equal
Source = Literal["runs", "seeds", "noise"]


@dataclass(frozen=True)
class Sampled:
    """The resampled fronts of one method.

    On a grid of MACs, `curves` returns the accuracies of all B resamples. `volumes` [B] are their hypervolumes, as
    shares of the rectangle up to the limit; None without a MACs limit.
    """

    source: Source
    runs: tuple[Staircase, ...]  # the fronts of the runs
    weights: Floats | None  # [B, runs]: share of each run in each resample; None for one run
    values: Floats | None  # [B, P]: accuracies of the points of the only run; None for several runs
    limit: float | None  # MACs

    def curves(self, grid: Floats) -> Floats:
        """Return the accuracy [B, G] up to each of G numbers of MACs, in each resample.

        It is that of the network on the front (one run), or the mean over runs; -inf if a run has no network so small.
        """
        if self.weights is not None:
            heights = np.stack([run.at(grid) for run in self.runs])  # [runs, G]
            known = np.isfinite(heights).all(axis=0)
            return np.where(known, self.weights @ np.where(np.isfinite(heights), heights, 0.0), -np.inf)
        assert self.values is not None  # either weights or values is given
        index = np.searchsorted(self.runs[0].macs, grid, side="right")
        return np.column_stack([np.full(len(self.values), -np.inf), self.values])[:, index]

    def observed(self, grid: Floats) -> Floats:
        """Return the accuracy [G] up to each of G numbers of MACs, without resampling: the mean over runs."""
        return np.mean([run.at(grid) for run in self.runs], axis=0)

    @property
    def hypervolume(self) -> float | None:
        """The mean hypervolume of the runs as a share of the rectangle up to the limit.

        A run without a point has the hypervolume 0. None without a MACs limit, or if no run has a point.
        """
        if not self.limit or not any(len(run.macs) for run in self.runs):
            return None
        return float(np.mean([_volumes(run.macs, run.accuracy[None], self.limit)[0] for run in self.runs]))

    @property
    def volumes(self) -> Floats | None:
        if not self.limit:
            return None
        if self.weights is not None:
            each = [_volumes(run.macs, run.accuracy[None], self.limit)[0] for run in self.runs]
            return self.weights @ np.array(each)
        assert self.values is not None
        return _volumes(self.runs[0].macs, self.values, self.limit)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 2.5 and 97.5 % quantiles of the resampled hypervolumes; None without a MACs limit or without a point."""
        volumes = self.volumes
        if volumes is None or not any(len(run.macs) for run in self.runs):
            return None
        low, high = np.quantile(volumes, [0.025, 0.975])
        return float(low), float(high)


def resampled(methods: Sequence[Method], rng: np.random.Generator, n: int = RESAMPLES) -> list[Sampled]:
    """Return `n` resamples of the front of each method; all methods have the same number of runs (`grouped`)."""
    runs = len(methods[0].runs)
    if runs == 1:
        return [resampled_study(method.runs[0], rng, n) for method in methods]
    drawn = rng.integers(0, runs, (n, runs - 1))
    weights = (drawn[:, :, None] == np.arange(runs)).mean(axis=1)  # [B, runs]
    fronts = [tuple(front_of(study) for study in method.runs) for method in methods]
    limit = methods[0].runs[0].limits.macs
    return [Sampled("runs", of_method, weights, None, limit) for of_method in fronts]


def resampled_study(study: Study, rng: np.random.Generator, n: int = RESAMPLES) -> Sampled:
    """Return `n` resamples of the front of one study, by the source "seeds" if it has replicates, else by "noise"."""
    best = front_of(study)
    if study.replicated:
        pool, counts = residuals(study), _seed_counts(study, best)
        drawn = [rng.choice(pool, (n, count)).mean(axis=1) for count in counts]
        shift = np.stack(drawn, axis=1) if drawn else np.zeros((n, 0))
        return Sampled("seeds", (best,), None, best.accuracy + shift, study.limits.macs)
    deviation = noise(study, best.accuracy)
    values = best.accuracy + deviation * rng.standard_normal((n, len(deviation)))
    return Sampled("noise", (best,), None, values, study.limits.macs)


def front_of(study: Study) -> Staircase:
    """Return the front of the candidates of a study in accuracy and MACs; other objectives are left out."""
    points = take(study.points, front.candidates(study) & replicates.measured(study.points))
    return staircase(points["macs"].to_numpy(float), points["val_macro_avg_acc"].to_numpy(float))


def noise(study: Study, accuracy: Floats) -> Floats:
    """Return the standard deviation [P] of single runs with `accuracy` [P]: finite number of clips, training seed.

    If the number of validation clips is unknown, the first part is left out.
    """
    clips = np.nan_to_num(summary.standard_error(np.clip(accuracy, 0, 1), summary.validation_clips(study)))
    return np.sqrt(clips**2 + (SEED_SD_POINTS / 100) ** 2)


def residuals(study: Study) -> Floats:
    """Return the scaled residuals of all seeds from the means of their configuration and prune step.

    A mean over n seeds shrinks its residuals, so they are multiplied by sqrt(n / (n - 1)).
    """
    rows = take(study.raw, replicates.measured(study.raw))
    groups = rows.groupby(["config_id", "step"])["val_macro_avg_acc"]
    n = groups.transform("size").to_numpy(float)
    off = (rows["val_macro_avg_acc"] - groups.transform("mean")).to_numpy(float)
    several = n >= 2
    return off[several] * np.sqrt(n[several] / (n[several] - 1))


def _seed_counts(study: Study, best: Staircase) -> list[int]:
    """Return the number of seeds of each point of the front `best`; of equal points, the smallest number."""
    points = take(study.points, front.candidates(study) & replicates.measured(study.points))
    macs, accuracy = points["macs"].to_numpy(float), points["val_macro_avg_acc"].to_numpy(float)
    counts = points["n_seeds"].to_numpy(int)
    pairs = zip(best.macs, best.accuracy, strict=True)
    return [int(counts[(macs == x) & (accuracy == y)].min()) for x, y in pairs]


def _volumes(macs: Floats, accuracies: Floats, limit: float) -> Floats:
    """Return the areas [B] below step functions with the corners `macs` [P] and `accuracies` [B, P], over `limit`.

    For a front, this is its hypervolume: the widths of the steps times their heights.
    """
    widths = np.diff(np.minimum(macs, limit), append=limit)
    return accuracies @ widths / limit
