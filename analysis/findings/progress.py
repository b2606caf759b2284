"""How the front of a study grew: its hypervolume after each measured candidate.

    found = progress(study)                # None: points.csv does not say when the networks were measured
    found.hypervolume, found.trials, found.epochs, found.hours        # arrays [N], in the order of measurement

Each of the N rows is a candidate for the front (analysis/front.py). It is compared with what the search had cost when
the candidate was measured: the trials that had begun (with those that were stopped, failed or still running), the
epochs that all trials had reported, and the run time of the study, without the pauses between its drivers.

In a study with replicates, the candidates are means over seeds, as everywhere in the report. A mean counts from the
moment when its second seed was measured, with its present value: the mean over all its seeds, of which some may have
been measured later. So the last value is the hypervolume of the front that the report shows, and the curve never falls.
A curve over single networks would lie above it.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.front import candidates
from analysis.results import MOMENT, Study, take

MARGIN = 1.1  # without a MACs limit, the reference is this many times the largest MACs of a candidate


@dataclass(frozen=True)
class Progress:
    """The hypervolume of a front after each of N candidates, and what the search had cost until then."""

    names: list[tuple[str, int]]  # (trial, prune step) of each candidate
    hypervolume: npt.NDArray[np.float64]  # [N] share of the rectangle from accuracy 0 to 1 and 0 to `reference` MACs
    trials: npt.NDArray[np.int64] | None  # [N] trials that had begun; None: trials.csv is missing
    epochs: npt.NDArray[np.float64]  # [N] epochs that all trials had reported
    hours: npt.NDArray[np.float64]  # [N] run time of the study
    reference: float  # MACs at which the rectangle ends
    limited: bool  # whether `reference` is the MACs limit of the study
    all_trials: int | None  # trials that have begun until now; None: trials.csv is missing
    all_epochs: float
    all_hours: float

    @property
    def grew(self) -> int | None:
        """Index of the newest candidate with which the hypervolume grew; None: it has always been 0."""
        increases = np.flatnonzero(np.diff(self.hypervolume, prepend=0.0) > 0)
        return int(increases[-1]) if len(increases) else None


def progress(study: Study) -> Progress | None:
    """Return how the hypervolume of the front of `study` grew.

    The result is None if points.csv does not have the columns MOMENT, because an earlier version of asc-tune wrote it.
    """
    if not set(MOMENT) <= set(study.points.columns):
        return None
    chosen = take(study.points, candidates(study)).sort_values(by=[*MOMENT, "trial_id", "step"], kind="stable")
    seconds, macs = chosen["search_s"].to_numpy(float), chosen["macs"].to_numpy(float)
    limit = study.limits.macs
    reference = float(limit or MARGIN * macs.max(initial=1.0))
    trials, begun = study.trials, None
    all_epochs = study.raw["search_epochs"].to_numpy(float).max(initial=0.0)
    if trials is not None:
        begun = np.searchsorted(np.sort(trials["created_s"].to_numpy(float)), seconds, side="right")
        all_epochs = trials["epochs"].to_numpy(float).sum()
    return Progress(
        names=list(zip(chosen["trial_id"], chosen["step"].astype(int), strict=True)),
        hypervolume=hypervolumes(macs, chosen["val_macro_avg_acc"].to_numpy(float), reference),
        trials=begun,
        epochs=chosen["search_epochs"].to_numpy(float),
        hours=seconds / 3600,
        reference=reference,
        limited=bool(limit),
        all_trials=None if trials is None else len(trials),
        all_epochs=float(all_epochs),
        all_hours=run_time_s(study) / 3600,
    )


def run_time_s(study: Study) -> float:
    """Return the run time of `study` in seconds until the latest moment in trials.csv and points.csv (0: none)."""
    tables = (study.trials, "created_s"), (study.trials, "ended_s"), (study.raw, "search_s")
    moments = [table[column].to_numpy(float) for table, column in tables if table is not None and column in table]
    return max((float(moment) for values in moments for moment in values if math.isfinite(moment)), default=0.0)


def hypervolumes(macs: npt.ArrayLike, accuracies: npt.ArrayLike, reference: float) -> npt.NDArray[np.float64]:
    """Return the hypervolumes [N] of the first 1, 2, ..., N points, as shares in [0, 1].

    The area is bounded by accuracy 0 and `reference` MACs, as in `front.hypervolume`. The front is kept sorted by MACs,
    so a point is compared with its neighbours only: N points take O(N log N) comparisons.
    """
    costs: list[float] = []  # of the front so far, ascending
    heights: list[float] = []  # accuracies of the front so far, ascending
    values = np.column_stack([np.asarray(macs, dtype=float), np.asarray(accuracies, dtype=float)])
    area, areas = 0.0, np.zeros(len(values))
    for i, (cost, height) in enumerate(values.tolist()):
        first = bisect_left(costs, cost)  # the front from `first` on costs at least as much
        below = heights[first - 1] if first else 0.0
        same = heights[first] if first < len(costs) and costs[first] == cost else 0.0
        if cost < reference and height > max(below, same):
            last, left = first, cost
            while last < len(costs) and heights[last] <= height:  # the new point dominates it
                area += (costs[last] - left) * (height - below)
                left, below = costs[last], heights[last]
                last += 1
            right = costs[last] if last < len(costs) else reference
            area += (right - left) * (height - below)
            costs[first:last], heights[first:last] = [cost], [height]
        areas[i] = area / reference
    return areas
