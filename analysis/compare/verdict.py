"""Which of two fronts is above the other, at which MACs, and how certain this is; in numbers and in words.

The accuracies up to x MACs of two methods are compared in each resample, at every corner of their fronts. From x to the
next corner, nothing changes, so no grid has to be chosen. A range is decided if one front is above the other in at
least 95 % of the resamples everywhere in the range (`THRESHOLD`). This holds for each number of MACs separately: it is
not corrected for the number of ranges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from analysis.compare.attainment import Floats
from analysis.compare.resampling import RESAMPLES, Sampled

THRESHOLD = 0.95
LEAST_RUNS = 5  # with fewer runs, equal methods have the same order in all runs too often: in 1 of 2^(n - 1) cases
SHOWN = 4  # ranges in a sentence


@dataclass(frozen=True)
class Range:
    """A range of MACs, from `low` to `high`, where the front of `winner` is above the other one."""

    low: float
    high: float
    winner: str  # key of a method
    share: float  # least share of the resamples with this order, at any number of MACs in the range
    gain: tuple[float, float]  # least and largest difference of the observed accuracies, in percentage points


@dataclass(frozen=True)
class Verdict:
    """The comparison of the methods `first` and `second` (keys) at all MACs from `start` to `end`.

    `start` is None if one of them has no point. `end` is the MACs limit or, without one, the largest point of both.
    """

    first: str
    second: str
    start: float | None
    end: float | None
    edges: Floats  # [G + 1]: the numbers of MACs at which something changes, from start to end
    above: Floats  # [G]: share of resamples in which `first` is above `second`, from edges[i] to edges[i + 1]
    below: Floats  # [G]
    ranges: tuple[Range, ...]  # the decided ranges
    only: str | None  # the method that alone has networks below `start`
    smallest: float | None  # its smallest network, in MACs
    runs: int  # of each method


def compare(first: tuple[str, Sampled], second: tuple[str, Sampled]) -> Verdict:
    """Return the verdict on two methods, each given as its key and its resamples."""
    (a, mine), (b, other) = first, second
    runs, empty = len(mine.runs), np.zeros(0)
    both = [*mine.runs, *other.runs]
    if not all(len(run.macs) for run in both):
        return Verdict(a, b, None, None, empty, empty, empty, (), None, None, runs)
    starts = [max(float(run.macs[0]) for run in sampled.runs) for sampled in (mine, other)]
    start, end = max(starts), mine.limit or max(float(run.macs[-1]) for run in both)
    corners = np.unique(np.concatenate([[start], *(run.macs for run in both)]))
    grid = corners[(corners >= start) & ((corners < end) | (corners == start))]
    edges = np.append(grid, max(end, start))
    left, right = mine.curves(grid), other.curves(grid)
    above, below = (left > right).mean(axis=0), (left < right).mean(axis=0)
    gain = 100 * (mine.observed(grid) - other.observed(grid))
    order = np.where(above >= THRESHOLD, 1, np.where(below >= THRESHOLD, -1, 0))
    ranges = []
    for sign, group in groupby(range(len(grid)), key=lambda i: int(order[i])):
        index = list(group)
        if sign:
            share = (above if sign > 0 else below)[index].min()
            gains = sign * gain[index]
            ends = float(edges[index[0]]), float(edges[index[-1] + 1])
            ranges.append(Range(*ends, a if sign > 0 else b, float(share), (float(gains.min()), float(gains.max()))))
    only = None if starts[0] == starts[1] else a if starts[0] < starts[1] else b
    smallest = min(starts) if only else None
    return Verdict(a, b, start, end, edges, above, below, tuple(ranges), only, smallest, runs)


def sentence(verdict: Verdict) -> str:
    """Return the verdict in words, for example "A's front is above B's from 2.1 to 8 M MACs (by 1.2 to 3.4 percentage
    points, in at least 97 % of 1,000 resamples); elsewhere undecided (compared from 0.3 to 30 M MACs)."
    """
    a, b = verdict.first, verdict.second
    if verdict.start is None or verdict.end is None:
        return f"{a} and {b} cannot be compared: at least one run has no point on its front."
    whole = _span(verdict.start, verdict.end)
    if not verdict.ranges:
        text = (
            f"{a} against {b}: undecided {whole} M MACs; at no number of MACs is one front above the other in "
            f"{100 * THRESHOLD:.0f} % of {RESAMPLES:,} resamples."
        )
        return text + _smallest(verdict)
    widest = sorted(verdict.ranges, key=lambda found: math.log(found.high / found.low))[-SHOWN:]
    parts = [
        _clause(winner, loser, [found for found in verdict.ranges if found.winner == winner and found in widest])
        for winner, loser in ((a, b), (b, a))
        if any(found.winner == winner for found in widest)
    ]
    text = "; ".join(parts)
    if hidden := len(verdict.ranges) - len(widest):
        text += f"; {hidden} narrower {'range is' if hidden == 1 else 'ranges are'} in the figure"
    covered = sum(found.high - found.low for found in verdict.ranges)
    complete = covered >= 0.999999 * (verdict.end - verdict.start)
    text += "." if complete else f"; elsewhere undecided (compared {whole} M MACs)."
    if 1 < verdict.runs < LEAST_RUNS:
        text += (
            f" This is no proof: at a given number of MACs, two equal methods have the same order in all "
            f"{verdict.runs} runs in 1 of {2 ** (verdict.runs - 1)} cases; use {LEAST_RUNS} runs or more."
        )
    return text + _smallest(verdict)


def sentences(found: Sequence[Verdict]) -> list[str]:
    """Return the verdicts in words. If there are more than three, one sentence has all that are undecided."""
    undecided = [verdict for verdict in found if verdict.start is not None and not verdict.ranges]
    if len(found) <= 3 or len(undecided) < 2:
        return [sentence(verdict) for verdict in found]
    others = ", ".join(verdict.second for verdict in undecided)
    whole = (
        f"{found[0].first} against {others}: undecided; at no number of MACs that both attain is one front above the "
        f"other in {100 * THRESHOLD:.0f} % of {RESAMPLES:,} resamples."
    )
    return [*(sentence(verdict) for verdict in found if verdict.start is None or verdict.ranges), whole]


def verdicts(sampled: Sequence[tuple[str, Sampled]]) -> list[Verdict]:
    """Return the verdict on the first method and each other one."""
    return [compare(sampled[0], other) for other in sampled[1:]]


def _clause(winner: str, loser: str, ranges: Sequence[Range]) -> str:
    places = [_span(found.low, found.high) for found in ranges]
    listed = " and ".join([", ".join(places[:-1]), places[-1]] if len(places) > 1 else places)
    low, high = (f"{gain:.1f}" for gain in (min(r.gain[0] for r in ranges), max(r.gain[1] for r in ranges)))
    gain = low if low == high else f"{low} to {high}"
    share = min(found.share for found in ranges)
    percent = math.floor(100 * share + 1e-9)  # rounded down: the text must not claim more than was found
    often = f"all {RESAMPLES:,}" if share == 1 else f"at least {percent} % of {RESAMPLES:,}"
    return f"{winner}'s front is above {loser}'s {listed} M MACs (by {gain} percentage points, in {often} resamples)"


def _smallest(verdict: Verdict) -> str:
    """Return a sentence about the MACs at which only one of the methods has networks; empty if there are none."""
    if verdict.only is None or verdict.start is None or verdict.smallest is None:
        return ""
    other = verdict.second if verdict.only == verdict.first else verdict.first
    lacks = "has no network" if verdict.runs == 1 else "does not have a network in every run"
    has = "has one" if verdict.runs == 1 else "has one in every run"
    return (
        f" Below {_millions(verdict.start)} M MACs, {other} {lacks}; {verdict.only} {has} from "
        f"{_millions(verdict.smallest)} M MACs."
    )


def _span(low: float, high: float) -> str:
    return f"at {_millions(low)}" if low == high else f"from {_millions(low)} to {_millions(high)}"


def _millions(macs: float) -> str:
    return f"{macs / 1e6:.3g}"
