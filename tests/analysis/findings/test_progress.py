"""The hypervolume over the course of a study, against a recomputation from scratch."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis import front
from analysis.findings.progress import hypervolumes, progress
from analysis.results import Study, load_study, take
from tests.support.example_study import (
    LIMITS,
    replicated_rows,
    rows,
    timed_rows,
    write_study,
    write_timed_study,
)


@pytest.mark.parametrize("seed", range(30))
def test_each_hypervolume_is_that_of_all_points_so_far(seed: int) -> None:
    """Integers make equal costs, equal accuracies and points on the reference frequent."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 40))
    macs, accuracies = rng.integers(1, 12, n).astype(float), rng.integers(0, 12, n) / 12
    if seed % 2:
        macs, accuracies = rng.uniform(0.1, 12, n), rng.uniform(0, 1, n)
    values, reference = np.column_stack([accuracies, macs]), 10.0
    expected = [front.hypervolume_2d(values[: i + 1], ("max", "min"), (0.0, reference)) / reference for i in range(n)]
    assert hypervolumes(macs.tolist(), accuracies.tolist(), reference) == pytest.approx(expected, abs=1e-12)


def test_ten_thousand_points_are_no_work() -> None:
    """A front of 10,000 points, each of which extends it: recomputing the front for each takes minutes."""
    share = np.random.default_rng(0).permutation(10_000) / 10_000
    found = hypervolumes(share.tolist(), share.tolist(), 1.0)
    assert found[-1] == pytest.approx(front.hypervolume_2d(np.column_stack([share, share]), ("max", "min"), (0, 1.0)))


@pytest.mark.parametrize("replicated", [False, True])
def test_the_curve_ends_at_the_hypervolume_of_the_report(tmp_path, replicated: bool) -> None:
    study = load_study(write_timed_study(tmp_path, replicated_rows() if replicated else rows()))
    found = progress(study)
    assert found is not None and found.limited and found.reference == LIMITS["macs"] and found.trials is not None
    assert found.hypervolume[-1] == pytest.approx(front.hypervolume(study))
    assert study.trials is not None
    assert (found.all_trials, found.all_epochs) == (len(study.trials), study.trials["epochs"].sum())
    assert found.all_hours == pytest.approx(study.trials["ended_s"].max() / 3600)
    for values in (found.hypervolume, found.trials, found.epochs, found.hours):
        assert (np.diff(values) >= 0).all()
    assert found.grew is not None and found.hypervolume[found.grew] == found.hypervolume[-1]
    assert found.grew == 0 or found.hypervolume[found.grew - 1] < found.hypervolume[-1]


def test_the_order_is_that_of_measurement(tmp_path) -> None:
    """Each value is the hypervolume of a study that has only the points which were measured until then."""
    study = load_study(write_timed_study(tmp_path))
    found = progress(study)
    assert found is not None and study.trials is not None and found.trials is not None
    begun = study.trials["created_s"].to_numpy(float)
    for i, hours in enumerate(found.hours):
        earlier = take(study.raw, study.raw["search_s"] <= hours * 3600 + 1e-6)
        assert found.hypervolume[i] == pytest.approx(front.hypervolume(dataclasses.replace(study, raw=earlier)))
        assert found.trials[i] == (begun <= hours * 3600 + 1e-6).sum()
        assert found.epochs[i] == earlier["search_epochs"].max()


def test_a_mean_counts_from_its_second_seed_on(tmp_path) -> None:
    table = [row for row in replicated_rows() if row["status"] == "complete"]
    study = load_study(write_study(tmp_path, timed_rows(table)))
    for point in study.points.to_dict("records"):
        seeds = study.raw[(study.raw["config_id"] == point["trial_id"]) & (study.raw["step"] == point["step"])]
        for column in ("search_s", "search_epochs"):
            moments = sorted(seeds[column])
            assert point[column] == moments[min(1, len(moments) - 1)]


def with_raw(study: Study, raw: pd.DataFrame) -> Study:
    return dataclasses.replace(study, raw=raw)


def test_studies_without_a_curve(tmp_path) -> None:
    assert progress(load_study(write_study(tmp_path / "old"))) is None
    study = load_study(write_timed_study(tmp_path / "new"))
    for raw in (study.raw.head(0), take(study.raw, ~study.raw["feasible"].to_numpy(bool))):  # only too large networks
        found = progress(with_raw(study, raw))
        assert found is not None and len(found.hypervolume) == 0 and found.grew is None
        assert found.all_trials == len(study.trials if study.trials is not None else ())
    found = progress(dataclasses.replace(study, trials=None))
    assert found is not None and found.trials is None and found.all_trials is None
    assert (found.all_epochs, found.all_hours * 3600) == (
        study.raw["search_epochs"].max(),
        pytest.approx(study.raw["search_s"].max()),
    )


def test_without_a_limit_the_rectangle_ends_beyond_the_largest_candidate(tmp_path) -> None:
    table = [row | {"feasible": True} for row in rows() if row["status"] == "complete"]
    study = load_study(write_timed_study(tmp_path / "all", table, limits={}))
    found = progress(study)
    assert found is not None and not found.limited
    assert found.reference == pytest.approx(1.1 * study.points["macs"].max())
    one = progress(with_raw(study, study.raw.head(1)))
    assert one is not None and one.hypervolume[0] > 0
