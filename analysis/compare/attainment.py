"""Empirical attainment surfaces of accuracy (maximised) over MACs (minimised).

A run attains the goal (x MACs, accuracy y) if one of its points has at most x MACs and at least the accuracy y. The
surface of k of n runs is, for each x, the highest y that at least k runs attain: k = 1 gives the best surface, k = n
the worst one, and k = ceil(n / 2) the median one (Fonseca and Fleming 1996; Lopez-Ibanez et al. 2010). For one run,
all three are its front.

    runs = [staircase(macs, accuracy) for ...]
    surface(runs, median(len(runs)))                    # Staircase: MACs [P] and accuracies [P] of its corners
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis import front

Floats = npt.NDArray[np.float64]
WAYS = ("max", "min")


@dataclass(frozen=True)
class Staircase:
    """The best accuracy up to each number of MACs, as a step function.

    From `macs[i]` (included) to `macs[i + 1]`, it is `accuracy[i]`; below `macs[0]`, it is -inf, because no point is so
    small. MACs [P] increase strictly. Accuracies [P] are shares in [0, 1]; on a front or surface, they increase, too.
    """

    macs: Floats
    accuracy: Floats

    def at(self, macs: npt.ArrayLike) -> Floats:
        """Return the best accuracy [G] up to each of `macs` [G]; -inf below the smallest point."""
        index = np.searchsorted(self.macs, np.asarray(macs, dtype=float), side="right")
        return np.concatenate([[-np.inf], self.accuracy])[index]


def staircase(macs: npt.ArrayLike, accuracy: npt.ArrayLike) -> Staircase:
    """Return the front of points with `macs` [N] and `accuracy` [N]; a point with a NaN or an infinity is left out."""
    values = np.column_stack([np.asarray(accuracy, dtype=float), np.asarray(macs, dtype=float)])
    best = values[front.pareto_mask(values, WAYS)]
    best = best[np.argsort(best[:, 1])]
    return Staircase(best[:, 1], best[:, 0])


def surface(runs: Sequence[Staircase], k: int) -> Staircase:
    """Return the surface that at least `k` of the n `runs` attain (1 <= k <= n).

    It has no corner if fewer than `k` runs have a point. Raise ValueError if `k` is not between 1 and n.
    """
    if not 1 <= k <= len(runs):
        raise ValueError(f"surface() got k={k} for {len(runs)} runs; expected 1 to the number of runs")
    grid = np.unique(np.concatenate([run.macs for run in runs]))
    heights = np.sort(np.stack([run.at(grid) for run in runs]), axis=0)[len(runs) - k]  # the k-th highest [G]
    corners = heights > np.concatenate([[-np.inf], heights])[:-1]
    return Staircase(grid[corners], heights[corners])


def median(n: int) -> int:
    """Return the number k of runs that attain the median surface of `n` runs: half of them, rounded up."""
    return math.ceil(n / 2)
