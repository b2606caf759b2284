"""Fronts, ranks, hypervolume and attainment surfaces equal brute force on 1,000 random sets each."""

import numpy as np
import pytest

from analysis import front
from analysis.compare.attainment import WAYS, Staircase, median, staircase, surface

SETS = 1000
BLOCKS = 4  # of seeds; each block is one test
REFERENCE = (0.0, 9.0)  # accuracy, MACs


def random_set(seed):
    """Return accuracies and MACs [N, 2] with ties, duplicates, NaN and infinities."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 9, (rng.integers(0, 25), 2)).astype(float)
    values = np.concatenate([values, values[: rng.integers(0, 4)]])  # duplicates
    values[rng.random(values.shape) < 0.06] = np.nan
    values[rng.random(values.shape) < 0.02] = np.inf * (-1) ** rng.integers(0, 2)
    return values


def block(number):
    return range(number * SETS // BLOCKS, (number + 1) * SETS // BLOCKS)


def peeled(values):
    """Return ranks by peeling: a front is what no remaining row dominates."""
    ranks = np.full(len(values), -1)
    left = np.flatnonzero(np.isfinite(values).all(axis=1))
    rank = 0
    while len(left):
        accuracy, macs = values[left].T
        at_least = (accuracy[:, None] >= accuracy) & (macs[:, None] <= macs)  # [dominating, dominated]
        better = at_least & ((accuracy[:, None] > accuracy) | (macs[:, None] < macs))
        free = ~better.any(axis=0)
        ranks[left[free]] = rank
        left, rank = left[~free], rank + 1
    return ranks


def counted_cells(values):
    """Return the hypervolume of integer points: the number of unit cells that a point dominates."""
    finite = values[np.isfinite(values).all(axis=1)]
    top, left = np.meshgrid(np.arange(REFERENCE[0] + 1, 12), np.arange(0, REFERENCE[1]))
    inside = (finite[:, 0, None, None] >= top) & (finite[:, 1, None, None] <= left)
    return int(inside.any(axis=0).sum())


@pytest.mark.parametrize("number", range(BLOCKS))
def test_ranks_fronts_and_hypervolume_equal_brute_force(number):
    for seed in block(number):
        values = random_set(seed)
        expected = peeled(values)
        assert front.nondominated_rank(values, WAYS).tolist() == expected.tolist(), seed
        first = {tuple(values[i]): i for i in reversed(np.flatnonzero(expected == 0).tolist())}
        assert np.flatnonzero(front.pareto_mask(values, WAYS)).tolist() == sorted(first.values()), seed
        corners = staircase(values[:, 1], values[:, 0])
        assert list(zip(corners.accuracy, corners.macs, strict=True)) == sorted(first, key=lambda row: row[1]), seed
        assert front.hypervolume_2d(values, WAYS, REFERENCE) == counted_cells(values), seed


def attained(runs, macs, accuracy):
    """Return how many runs (arrays [N, 2] of accuracy and MACs) have a point that is as good as the goal."""
    return sum(any(a >= accuracy and m <= macs for a, m in run if np.isfinite([a, m]).all()) for run in runs)


@pytest.mark.parametrize("number", range(BLOCKS))
def test_attainment_surfaces_equal_brute_force(number):
    """At each number of MACs, the surface is the highest accuracy that k runs attain, tried one by one."""
    heights, places = np.arange(-1.0, 10.0), np.arange(-1.0, 10.0)
    for seed in block(number):
        rng = np.random.default_rng(seed)
        runs = [random_set(10_000 * int(rng.integers(1, 99)) + seed) for _ in range(rng.integers(1, 6))]
        # counts [M, A]: the number of runs that attain each goal of the grid, without `staircase` and `surface`
        good = [run[np.isfinite(run).all(axis=1)] for run in runs]
        counts = sum(
            ((run[:, 0, None, None] >= heights) & (run[:, 1, None, None] <= places[:, None])).any(axis=0).astype(int)
            for run in good
        )
        fronts = [staircase(run[:, 1], run[:, 0]) for run in runs]
        for k in range(1, len(runs) + 1):
            made = surface(fronts, k)
            expected = np.where(counts >= k, heights, -np.inf).max(axis=1)
            assert made.at(places).tolist() == expected.tolist(), (seed, k)
            assert (np.diff(made.macs) > 0).all() and (np.diff(made.accuracy) > 0).all()  # corners only
            assert all(attained(runs, *corner) >= k for corner in zip(made.macs, made.accuracy, strict=True))


def test_attainment_closed_forms():
    low, high = staircase([1, 4], [0.3, 0.6]), staircase([2, 4], [0.5, 0.9])
    best, worst = surface([low, high], 1), surface([low, high], 2)
    assert (best.macs.tolist(), best.accuracy.tolist()) == ([1, 2, 4], [0.3, 0.5, 0.9])
    assert (worst.macs.tolist(), worst.accuracy.tolist()) == ([2, 4], [0.3, 0.6])
    assert low.at([0.5, 1, 3.9, 100]).tolist() == [-np.inf, 0.3, 0.3, 0.6]
    assert [median(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    empty = Staircase(np.zeros(0), np.zeros(0))
    assert len(surface([low, empty], 2).macs) == len(surface([empty, empty], 1).macs) == 0
    with pytest.raises(ValueError, match="k=3"):
        surface([low, high], 3)
