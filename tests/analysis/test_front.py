"""Pareto fronts and hypervolume: against brute force and closed forms, in every output."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import front, outputs, summary
from analysis.manifest import manifest_of
from analysis.page import html as report_page
from analysis.page import sentences
from analysis.results import STATUSES, Study, load_study
from tests.support.analysis.outputs import (
    brute_force_front,
    dominates,
    drawn,
    own_text,
    random_points,
    study_of,
    table_rows,
)
from tests.support.example_study import manifest, rows, write_study
from tests.support.marks import rest_slow

LIMITS = {"macs": 1000.0, "bytes": None, "precision": "fp16"}


def brute_force_ranks(values, directions):
    """Return ranks by peeling: the next front is the remaining rows that no other one dominates."""
    ranks = np.full(len(values), -1)
    left = [i for i, row in enumerate(values) if np.isfinite(row).all()]
    for rank in range(len(left)):
        beaten = [i for i in left if any(dominates(values[j], values[i], directions) for j in left)]
        ranks[[i for i in left if i not in beaten]] = rank
        left = beaten
    return ranks


def random_values(seed):
    """Return rows with ties, duplicates, NaN and infinities, in 1 to 3 objectives."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(0, 40)), int(rng.integers(1, 4))
    values = rng.integers(0, 6, (n, m)).astype(float)
    values[rng.random((n, m)) < 0.05] = np.nan
    values[rng.random((n, m)) < 0.03] = np.inf
    return values, [str(way) for way in rng.choice(["max", "min"], m)]


@pytest.mark.parametrize("seed", rest_slow(range(60), 12))
def test_ranks_and_mask_equal_brute_force(seed):
    values, directions = random_values(seed)
    expected = brute_force_ranks(values, directions)
    assert front.nondominated_rank(values, directions).tolist() == expected.tolist()
    first = {tuple(values[i]): i for i in reversed(range(len(values))) if expected[i] == 0}
    assert np.flatnonzero(front.pareto_mask(values, directions)).tolist() == sorted(first.values())


def test_front_closed_forms():
    falling = np.column_stack([np.arange(50.0), np.arange(50.0)])
    assert front.pareto_mask(falling, ("max", "min")).all()  # a trade-off: every point is on the front
    assert front.nondominated_rank(falling, ("min", "min")).tolist() == list(range(50))  # each point dominates the next
    assert front.pareto_mask([[1, 1], [1, 1]], ("max", "min")).tolist() == [True, False]
    assert front.nondominated_rank([[1, 1], [1, 1], [0, 0]], ("max", "max")).tolist() == [0, 0, 1]
    assert front.pareto_mask([], ("max", "min")).tolist() == []
    with pytest.raises(ValueError, match="'maximize'"):
        front.pareto_mask([[1, 2]], ("max", "maximize"))
    with pytest.raises(ValueError, match="shape"):
        front.pareto_mask([[1, 2, 3]], ("max", "min"))


@pytest.mark.parametrize("seed", rest_slow(range(20), 5))
def test_hypervolume_equals_counted_cells(seed):
    """For points with integer values, the dominated area is a countable number of unit cells."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 13, (rng.integers(0, 12), 2)).astype(float)
    values[rng.random(values.shape) < 0.05] = np.nan
    # accuracy (max) above 2, cost (min) below 10; a cell is named by its upper left corner
    cells = sum(
        any(row[0] >= top and row[1] <= left for row in values if np.isfinite(row).all())
        for top in range(3, 13)
        for left in range(0, 10)
    )
    assert front.hypervolume_2d(values, ("max", "min"), (2, 10)) == cells


def test_hypervolume_closed_forms():
    assert front.hypervolume_2d([[0.5, 10.0]], ("max", "min"), (0.0, 30.0)) == pytest.approx(0.5 * 20)
    assert front.hypervolume_2d([[0.5, 30.0], [0.0, 1.0]], ("max", "min"), (0.0, 30.0)) == 0
    assert front.hypervolume_2d([[1, 3], [2, 2], [3, 1]], ("min", "min"), (4, 4)) == 6
    with pytest.raises(ValueError, match=r"reference \(4, nan\)"):
        front.hypervolume_2d([[1, 1]], ("min", "min"), (4, np.nan))


@pytest.mark.parametrize("seed", rest_slow(range(3), 1))
def test_every_output_shows_the_brute_force_front(tmp_path, seed):
    table = rows(seed)
    table[3]["val_macro_avg_acc"] = "nan"  # a complete, feasible point whose accuracy is not a number
    study = load_study(write_study(tmp_path, table))
    table[3]["val_macro_avg_acc"] = np.nan
    expected = brute_force_front(table)
    best = front.pareto_points(study)
    assert list(zip(best["trial_id"], best["step"], strict=True)) == expected
    written = pd.read_csv(io.BytesIO(outputs.front_csv(study)), dtype={"trial_id": str})
    assert list(zip(written["trial_id"], written["step"], strict=True)) == expected
    assert list(written.columns) == list(study.points.columns)
    assert table_rows(report_page.page(study)) == expected
    terminal = outputs.front_table(study)
    assert list(zip(*(column.cells for column in list(terminal.columns)[:2]), strict=True)) == [
        (trial, str(step)) for trial, step in expected
    ]
    assert [(one["trial"], int(one["step"])) for one in drawn(study, "front")] == expected


@pytest.mark.parametrize("status", STATUSES)
def test_a_measured_point_is_a_candidate_whatever_became_of_its_trial(status):
    """The dense point of a trial with any status has the best accuracy at its cost, so it is on the front."""
    good = rows()[0] | {"macs": 100, "bytes_fp16": 100, "feasible": True, "step": 0}
    table = [
        good | {"trial_id": "whole", "status": "complete", "val_macro_avg_acc": 0.5},
        good | {"trial_id": "whole", "status": "complete", "val_macro_avg_acc": 0.4, "step": 1, "macs": 50},
        good | {"trial_id": "ended", "status": status, "val_macro_avg_acc": 0.9},
    ]
    study = study_of(table, trials=None)
    best = front.pareto_points(study)
    assert best[["trial_id", "step", "status"]].to_numpy().tolist() == [["whole", 1, "complete"], ["ended", 0, status]]
    assert summary.roles(study).tolist() == ["dominated", "front", "front"]
    assert front.hypervolume(study) == pytest.approx((0.4 * 50 + 0.9 * (30e6 - 100)) / 30e6)
    assert sentences.headline(study).startswith("2 non-dominated feasible points from")
    shown = drawn(study, "front")[1]
    assert (shown["trial"], shown["step"]) == ("ended", "0") and shown["trial status"].startswith(f"{status},")
    page = own_text(report_page.page(study))
    assert table_rows(page) == [("whole", 1), ("ended", 0)]
    shown = "Trials of the front" in sentences.facts(study)
    assert shown == ("<dt>Trials of the front</dt>" in page) == (">trial status</button>" in page)
    assert shown == (status != "complete")
    assert f",{status}," in outputs.front_csv(study).decode().splitlines()[2]


def test_infeasible_points_and_points_with_a_nan_stay_off_the_front():
    good = rows()[0] | {"macs": 100, "bytes_fp16": 100, "feasible": True, "step": 0, "status": "complete"}
    table = [
        good | {"trial_id": "over", "val_macro_avg_acc": 0.9, "feasible": False},
        good | {"trial_id": "no accuracy", "val_macro_avg_acc": np.nan},
        good | {"trial_id": "no cost", "val_macro_avg_acc": 0.9, "macs": np.nan},
        good | {"trial_id": "no size", "val_macro_avg_acc": 0.9, "bytes_fp16": np.nan},
        good | {"trial_id": "no end", "val_macro_avg_acc": np.inf},
        good | {"trial_id": "only", "val_macro_avg_acc": 0.5},
    ]
    study = study_of(table, objectives={"val_macro_avg_acc": "max", "macs": "min", "bytes": "min"}, trials=None)
    assert front.pareto_points(study)["trial_id"].tolist() == ["only"]
    assert summary.roles(study).tolist() == ["infeasible", *["unmeasured"] * 4, "front"]
    assert sentences.warnings(study) == []


@pytest.mark.parametrize("code", [{}, {"data/tau.py": "0"}])
def test_a_resume_is_advised_only_where_there_is_a_journal(code):
    """Studies of versions without a journal have no hashes of the code, and no resume writes their tables again."""
    study = study_of(rows(), trials={"complete": 999}, code=code)
    (warning,) = [line for line in sentences.warnings(study) if "999" in line]
    assert ("--resume" in warning) == bool(code) and "points.csv" in warning
    empty = replace(study, points_missing=True, raw=study.raw.iloc[:0])
    assert ("--resume" in sentences.headline(empty)) == bool(code)


@pytest.mark.parametrize("seed", rest_slow(range(30), 6))
def test_the_front_of_random_tables_is_the_brute_force_one_and_does_not_depend_on_status(seed):
    table = random_points(seed, 20)
    expected = brute_force_front(table)
    first = {}  # the first of equal points in the table represents all
    for row in table:
        if row["feasible"]:
            first.setdefault((row["val_macro_avg_acc"], row["macs"]), (row["trial_id"], row["step"]))
    values = {(r["trial_id"], r["step"]): (r["val_macro_avg_acc"], r["macs"]) for r in table}
    expected = [point for point in expected if first[values[point]] == point]
    for statuses in (None, "running", "crashed"):
        changed = table if statuses is None else [row | {"status": statuses} for row in table]
        best = front.pareto_points(study_of(changed))
        assert list(zip(best["trial_id"], best["step"], strict=True)) == expected


def test_third_objective_bytes(tmp_path):
    base = rows()[0] | {"feasible": True, "status": "complete", "step": 0}
    triples = [(0.6, 100, 200), (0.6, 200, 100), (0.6, 200, 200), (0.5, 300, 300)]
    table = [
        base | {"trial_id": str(i), "val_macro_avg_acc": a, "macs": m, "bytes_fp16": b}
        for i, (a, m, b) in enumerate(triples)
    ]
    objectives = {"val_macro_avg_acc": "max", "macs": "min", "bytes": "min"}
    study = load_study(write_study(tmp_path, table, objectives=objectives))
    assert front.pareto_points(study)["trial_id"].tolist() == ["0", "1"]
    assert "<!doctype html>" in report_page.page(study)


def test_hypervolume_of_a_study():
    points = pd.DataFrame(rows()[:2]).assign(feasible=True, status="complete")
    points["val_macro_avg_acc"], points["macs"] = [0.5, 0.8], [100.0, 500.0]
    study = Study(Path("nowhere"), manifest_of(manifest(limits=LIMITS), "study.json"), points, None)
    assert front.hypervolume(study) == pytest.approx((0.5 * 400 + 0.8 * 500) / 1000)
    unlimited = manifest_of(manifest(limits=None), "study.json")
    assert front.hypervolume(Study(Path("nowhere"), unlimited, points, None)) is None
