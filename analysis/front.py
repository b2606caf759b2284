"""Pareto front, non-dominated sorting and 2-D hypervolume of the points of a study.

A direction ("max" or "min") is declared once per objective; only `_costs` changes signs. A row with a NaN or an
infinity is never on the front, has rank -1 and adds no hypervolume. Example:

    values = [[0.71, 4.1e6], [0.58, 0.9e6], [0.55, 2.0e6]]     # accuracy, MACs
    pareto_mask(values, ("max", "min"))                         # [True, True, False]
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import replicates
from analysis.results import Study, take

SIGNS = {"min": 1.0, "max": -1.0}


def pareto_mask(values: npt.ArrayLike, directions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return a mask [N] that is True for the non-dominated rows of `values` [N, M], one row per point.

    `directions` has "max" or "min" for each column. If several non-dominated rows are equal, only the first is True.
    """
    ranks = nondominated_rank(values, directions)
    mask = np.zeros(len(ranks), dtype=bool)
    best = np.flatnonzero(ranks == 0)
    if len(best):
        _, first = np.unique(_costs(values, directions)[best], axis=0, return_index=True)
        mask[best[first]] = True
    return mask


def nondominated_rank(values: npt.ArrayLike, directions: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the ranks [N] of the rows of `values` [N, M]: the index of the front to which a row belongs.

    `directions` has "max" or "min" for each column. Rank 0 is the non-dominated front. Rank k is the front that remains
    after the fronts 0 to k - 1 are removed. A row with a NaN or an infinity has rank -1. Equal rows have the same rank.

    Algorithm: efficient non-dominated sort with binary search (Zhang et al. 2015, ENS-BS). In lexicographic order, a
    row can only be dominated by earlier rows. A row that is dominated by a member of front k is also dominated by
    members of the fronts 0 to k - 1, so its front is found by binary search.
    """
    costs = _costs(values, directions)
    ranks = np.full(len(costs), -1, dtype=np.int64)
    finite = np.isfinite(costs).all(axis=1)
    if not finite.any():
        return ranks
    distinct, inverse = np.unique(costs[finite], axis=0, return_inverse=True)  # sorted lexicographically
    rank_of = np.empty(len(distinct), dtype=np.int64)
    if costs.shape[1] <= 2:  # the last row added to a front has the least second cost of that front
        least: list[float] = []
        for row, cost in enumerate(distinct[:, -1].tolist()):
            rank_of[row] = front = bisect_right(least, cost)
            least[front : front + 1] = [cost]
        ranks[finite] = rank_of[inverse.reshape(-1)]
        return ranks
    fronts: list[list[int]] = []
    for row, cost in enumerate(distinct):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if (distinct[fronts[middle]] <= cost).all(axis=1).any():  # rows are distinct, so <= dominates
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append([])
        fronts[low].append(row)
        rank_of[row] = low
    ranks[finite] = rank_of[inverse.reshape(-1)]
    return ranks


def hypervolume_2d(values: npt.ArrayLike, directions: Sequence[str], reference: Sequence[float]) -> float:
    """Return the hypervolume of `values` [N, 2]: the area that they dominate, bounded by the point `reference` [2].

    `directions` has "max" or "min" for each column. The unit of the area is the product of the units of the two
    columns. A row that is not better than the reference in both columns adds nothing.
    """
    costs, worst = _costs(values, directions), _costs([reference], directions)[0]
    if costs.shape[1] != 2 or not np.isfinite(worst).all():
        raise ValueError(
            f"hypervolume_2d got values of shape {costs.shape} and reference {reference}; expected values of shape "
            "[N, 2] and a finite reference"
        )
    inside = costs[(costs < worst).all(axis=1)]
    front = inside[pareto_mask(inside, ("min", "min"))]
    front = front[np.argsort(front[:, 0])]  # the first cost increases, so the second decreases
    widths = np.diff(front[:, 0], append=worst[0])
    return float(np.sum(widths * (worst[1] - front[:, 1])))


def candidates(study: Study) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the rows of `study.points` that are candidates for the front.

    A candidate is feasible; its accuracy, its MACs and all its objectives are finite. The status of the trial does not
    matter: the stage of a point was trained to the end and measured, even if the trial was stopped, failed or crashed
    at a later stage. If a study has replicates, only means over two or more seeds are candidates, because the best of
    many single runs can be better than a mean by chance.
    """
    points = study.points
    allowed = np.isfinite(objective_values(study)).all(axis=1) & points["feasible"].to_numpy(bool)
    allowed &= replicates.measured(points)
    return allowed & (points["n_seeds"] >= 2).to_numpy(bool) if study.replicated else allowed


def front_mask(study: Study) -> npt.NDArray[np.bool_]:
    """Return a mask [N] that is True for the rows of `study.points` on the Pareto front of the study."""
    allowed = candidates(study)
    mask = np.zeros(len(allowed), dtype=bool)
    values = objective_values(study)[allowed]
    mask[np.flatnonzero(allowed)] = pareto_mask(values, list(study.objectives.values()))
    return mask


def pareto_points(study: Study) -> pd.DataFrame:
    """Return the rows of `study.points` on the Pareto front, sorted by MACs.

    If the study has test results (test.csv), their columns are added.
    """
    best = take(study.with_test(), front_mask(study))
    return best.sort_values(by="macs", kind="stable").reset_index(drop=True)


def hypervolume(study: Study) -> float | None:
    """Return the hypervolume of the front of a study, as a share in [0, 1] of a fixed rectangle.

    The rectangle extends from accuracy 0 to 1 and from 0 MACs to the MACs limit of the study. The result is None if
    the study has no MACs limit.
    """
    limit = study.limits.macs
    if not limit:
        return None
    values = study.points.loc[candidates(study), ["val_macro_avg_acc", "macs"]].to_numpy(float)
    return hypervolume_2d(values, ("max", "min"), (0.0, limit)) / limit


def objective_values(study: Study) -> npt.NDArray[np.float64]:
    """Return the M objectives of the N points of a study as an array [N, M], in the units of points.csv.

    Objectives to be maximised are not negated.
    """
    return study.points[list(study.objectives)].to_numpy(np.float64)


def _costs(values: Any, directions: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return `values` [N, M] as costs to be minimised: columns with the direction "max" are negated.

    Raise ValueError for an unknown direction, or if the number of columns is not that of `directions`.
    """
    if unknown := set(directions) - set(SIGNS):
        raise ValueError(f"objective direction is {sorted(unknown)[0]!r}; expected 'max' or 'min'")
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, len(directions))
    if array.ndim != 2 or array.shape[1] != len(directions):
        raise ValueError(
            f"values have the shape {array.shape}; expected [N, {len(directions)}], one column per direction"
        )
    return array * np.array([SIGNS[direction] for direction in directions])
