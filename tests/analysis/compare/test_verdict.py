"""Verdicts and intervals on simulated studies whose true fronts are known."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import front
from analysis.compare.comparison import compare_studies
from analysis.compare.resampling import RESAMPLES, resampled_study, residuals
from analysis.compare.verdict import compare, sentence, sentences
from tests.support.analysis.comparisons import of_data, replicated, study

COSTS = [1e6, 2e6, 4e6, 8e6, 16e6]
LEVELS = np.array([0.50, 0.55, 0.60, 0.65, 0.70])


def pair(left, right, **changes):
    """Return the verdict on two studies with the points `left` and `right`."""
    other = {"sampler": "nsga2"} | changes
    compared = compare_studies([study("a", left, dataset=of_data()), study("b", right, dataset=of_data(), **other)])
    (found,) = compared.verdicts
    return found


def points(levels):
    return list(zip(COSTS, levels, strict=True))


def values_of(one, rng):
    values = resampled_study(one, rng).values
    assert values is not None
    return values


def test_a_front_that_is_above_in_the_middle():
    better, worse = points([0.5, 0.70, 0.75, 0.75, 0.75]), points([0.5, 0.55, 0.60, 0.72, 0.75])
    found = pair(better, worse)
    assert [(r.winner, r.low, r.high) for r in found.ranges] == [("A", 2e6, 8e6)]
    assert found.ranges[0].gain == pytest.approx((15, 15)) and found.ranges[0].share >= 0.95
    assert "A's front is above B's from 2 to 8 M MACs (by 15.0 percentage points, in " in sentence(found)
    assert "elsewhere undecided (compared from 1 to 30 M MACs)" in sentence(found)
    assert [(r.winner, r.low, r.high) for r in pair(worse, better).ranges] == [("B", 2e6, 8e6)]


def test_equal_fronts_are_undecided():
    found = pair(points(LEVELS), points(LEVELS))
    assert not found.ranges and "undecided from 1 to 30 M MACs" in sentence(found)
    assert (found.above > 0.4).all() and (found.below > 0.4).all()


def test_the_smallest_networks_are_stated_apart_and_nothing_is_said_below():
    found = pair(points(LEVELS), [(4e6, 0.9)])
    assert (found.start, found.end, found.only, found.smallest) == (4e6, 30e6, "A", 1e6)
    assert [(r.winner, r.low, r.high) for r in found.ranges] == [("B", 4e6, 30e6)]
    text = sentence(found)
    assert "Below 4 M MACs, B has no network; A has one from 1 M MACs." in text and "elsewhere" not in text


def test_without_points_there_is_no_verdict():
    found = pair(points(LEVELS), [])
    assert found.start is None and not found.ranges and "cannot be compared" in sentence(found)


@pytest.mark.parametrize("true", [0.0, 0.06])
def test_shares_of_single_runs_are_calibrated(true):
    """Of equal networks, about 1 of 10 pairs is decided by chance; a difference of 6 points is found in half of them.

    The noise of a difference is sqrt(2 (0.5^2 / 420 + 0.0129^2)) = 0.039, so 6 points are 1.54 standard deviations, and
    a verdict needs 1.645 of them.
    """
    rng, runs, wins = np.random.default_rng(1), 100, 0
    one, sd = study("a", [(1e6, 0.5)]), np.sqrt(0.25 / 420 + 0.0129**2)
    for _ in range(runs):
        measured = [0.5 + sign * true / 2 + sd * rng.standard_normal() for sign in (1, -1)]
        both = [replace(one, raw=one.raw.assign(val_macro_avg_acc=accuracy)) for accuracy in measured]
        left, right = (resampled_study(made, rng) for made in both)
        wins += bool(compare(("A", left), ("B", right)).ranges)
    expected = 0.1 if not true else 0.46
    assert wins / runs == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_seeds_have_the_true_width(seeds):
    """The standard deviation of a resampled mean over n seeds is sd / sqrt(n), on average over studies."""
    rng, sd, found = np.random.default_rng(seeds), 0.02, []
    for _ in range(12):
        one = study("a", replicated(zip(COSTS, LEVELS, strict=True), seeds, sd, rng))
        found.append(np.mean(values_of(one, rng).var(axis=0)))
    assert np.sqrt(np.mean(found)) == pytest.approx(sd / np.sqrt(seeds), rel=0.2)


def test_residuals_leave_out_configurations_with_one_seed():
    rng = np.random.default_rng(0)
    one = study("a", replicated([(1e6, 0.5), (2e6, 0.6)], 2, 0.02, rng, missing={(1, 1)}))
    assert len(residuals(one)) == 2 and residuals(one).sum() == pytest.approx(0)
    accuracy = one.raw["val_macro_avg_acc"].to_numpy()[:2]
    assert residuals(one).std() == pytest.approx(np.std(accuracy, ddof=1))
    assert values_of(one, rng).shape == (RESAMPLES, 1)  # the second configuration is no candidate


def runs(prefix, n, gain, rng, **changes):
    """Return `n` runs of one method; the difficulty of the clips differs between seeds, the gain hardly does."""
    made = []
    for seed in range(n):
        hard = 0.05 * (-1) ** seed  # the same for all methods
        levels = np.maximum.accumulate(LEVELS + hard + gain + rng.normal(0, 0.004, len(LEVELS)))
        dataset = of_data(validation=f"v{seed}")
        made.append(study(f"{prefix}{seed}", points(levels), seed=seed, dataset=dataset, **changes))
    return made


@pytest.mark.parametrize("n", [3, 6])
def test_runs_are_compared_with_equal_seeds(n):
    """A gain of 2 points is found although the clips of the seeds differ by 10 points, because seeds are paired."""
    rng = np.random.default_rng(0)
    compared = compare_studies([*runs("a", n, 0.02, rng), *runs("b", n, 0.0, rng, sampler="nsga2")])
    (found,) = compared.verdicts
    assert [(r.winner, r.low, r.high) for r in found.ranges] == [("A", 1e6, 30e6)]
    text = sentence(found)
    assert "from 1 to 30 M MACs" in text and "in all 1,000 resamples" in text
    assert ("no proof" in text) == (n == 3) and ("1 of 4 cases" in text) == (n == 3)
    for sampled in compared.sampled:
        assert sampled.interval is not None and sampled.hypervolume is not None
        low, high = sampled.interval
        assert high - low > 0.02  # the interval of a single method contains the difficulty of the clips
        assert low <= sampled.hypervolume <= high or n == 3  # 3 runs have few different resamples


def test_the_interval_of_runs_has_the_variance_of_a_mean():
    rng = np.random.default_rng(5)
    compared = compare_studies(runs("a", 6, 0.0, rng))
    assert compared.verdicts == ()
    each = np.array([front.hypervolume(one) for one in compared.methods[0].runs])
    volumes = compared.sampled[0].volumes
    assert volumes is not None
    assert volumes.std() == pytest.approx(each.std(ddof=1) / np.sqrt(6), rel=0.1)
    assert compared.sampled[0].hypervolume == pytest.approx(each.mean())


def test_resamples_are_centred_on_the_front_and_repeat():
    """No optimism: the mean of the resampled hypervolumes is the hypervolume, also with many equal candidates."""
    many = [(cost * (1 + i / 1000), level) for cost, level in points(LEVELS) for i in range(40)]
    studies = [study("a", many, dataset=of_data()), study("b", points(LEVELS), dataset=of_data(), sampler="nsga2")]
    compared, again = compare_studies(studies), compare_studies(studies)
    for sampled, one in zip(compared.sampled, studies, strict=True):
        assert sampled.volumes is not None
        assert sampled.volumes.mean() == pytest.approx(front.hypervolume(one), abs=0.002)
        assert sampled.hypervolume == pytest.approx(front.hypervolume(one))
    assert compared.sampled[0].interval == again.sampled[0].interval
    assert compared.verdicts[0].above.tolist() == again.verdicts[0].above.tolist()


def test_three_methods_are_compared_with_the_first():
    studies = [study("a", points(LEVELS)), study("b", points(LEVELS + 0.25), sampler="nsga2"),
               study("c", points(LEVELS - 0.25), sampler="random")]  # fmt: skip
    compared = compare_studies(studies)
    assert [(v.first, v.second, [r.winner for r in v.ranges]) for v in compared.verdicts] == [
        ("A", "B", ["B"]), ("A", "C", ["A"])]  # fmt: skip
    assert sentences(compared.verdicts) == [sentence(found) for found in compared.verdicts]
    more = compare_studies([*studies, *(study(n, points(LEVELS), scheduler=n) for n in "de")])
    *decided, last = sentences(more.verdicts)
    assert decided == [sentence(found) for found in more.verdicts[:2]] and last.startswith("A against D, E: undecided;")
