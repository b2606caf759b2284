"""The analysis layer: fronts against brute force and closed forms, study folders, the report's files."""

import ast
import html
import io
import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from analysis import front, replicates, report, summary
from analysis.manifest import ResultsError, manifest_of
from analysis.page import figure_html, figure_parts, sentences
from analysis.page import html as report_page
from analysis.results import STATUSES, Study, load_study, points_table
from search_spaces import load_space
from tests.support.example_study import manifest, replicated_rows, rows, write_study, write_table
from tests.support.paths import ROOT

LIMITS = {"macs": 1000.0, "bytes": None, "precision": "fp16"}


def dominates(left, right, directions):
    signs = [1 if way == "max" else -1 for way in directions]
    gains = [sign * (a - b) for sign, a, b in zip(signs, left, right, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def brute_force_ranks(values, directions):
    """Peel: the rows that no other remaining row dominates are the next front."""
    ranks = np.full(len(values), -1)
    left = [i for i, row in enumerate(values) if np.isfinite(row).all()]
    for rank in range(len(left)):
        beaten = [i for i in left if any(dominates(values[j], values[i], directions) for j in left)]
        ranks[[i for i in left if i not in beaten]] = rank
        left = beaten
    return ranks


def random_values(seed):
    """Rows with ties, duplicates, NaN and infinities, in 1 to 3 objectives."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(0, 40)), int(rng.integers(1, 4))
    values = rng.integers(0, 6, (n, m)).astype(float)
    values[rng.random((n, m)) < 0.05] = np.nan
    values[rng.random((n, m)) < 0.03] = np.inf
    return values, [str(way) for way in rng.choice(["max", "min"], m)]


@pytest.mark.parametrize("seed", range(60))
def test_ranks_and_mask_equal_brute_force(seed):
    values, directions = random_values(seed)
    expected = brute_force_ranks(values, directions)
    assert front.nondominated_rank(values, directions).tolist() == expected.tolist()
    first = {tuple(values[i]): i for i in reversed(range(len(values))) if expected[i] == 0}
    assert np.flatnonzero(front.pareto_mask(values, directions)).tolist() == sorted(first.values())


def test_front_closed_forms():
    falling = np.column_stack([np.arange(50.0), np.arange(50.0)])
    assert front.pareto_mask(falling, ("max", "min")).all()  # a trade-off: every point stands
    assert front.nondominated_rank(falling, ("min", "min")).tolist() == list(range(50))  # a chain
    assert front.pareto_mask([[1, 1], [1, 1]], ("max", "min")).tolist() == [True, False]
    assert front.nondominated_rank([[1, 1], [1, 1], [0, 0]], ("max", "max")).tolist() == [0, 0, 1]
    assert front.pareto_mask([], ("max", "min")).tolist() == []
    with pytest.raises(ValueError, match="'maximize'"):
        front.pareto_mask([[1, 2]], ("max", "maximize"))
    with pytest.raises(ValueError, match="shape"):
        front.pareto_mask([[1, 2, 3]], ("max", "min"))


@pytest.mark.parametrize("seed", range(20))
def test_hypervolume_equals_counted_cells(seed):
    """Integer points: the dominated area is a number of unit cells, which can be counted."""
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


def brute_force_front(table):
    """(trial, step) of the front of rows as dicts, sorted by MACs."""
    good = [r for r in table if r["feasible"] and np.isfinite([r["val_macro_avg_acc"], r["macs"]]).all()]
    pairs = [(r["val_macro_avg_acc"], r["macs"]) for r in good]
    beaten = [any(dominates(other, pair, ("max", "min")) for other in pairs) for pair in pairs]
    best = [row for row, worse in zip(good, beaten, strict=True) if not worse]
    return [(r["trial_id"], r["step"]) for r in sorted(best, key=lambda r: r["macs"])]


def traces(study):
    """The interactive plot's traces as plain dicts, by name."""
    figure = figure_html.interactive(study, figure_parts.macs_axis(study)).to_plotly_json()
    return {trace["name"]: trace for trace in figure["data"]}


def own_text(page):
    """The page without plotly.js."""
    return page.replace(report_page.get_plotlyjs(), "")


def table_rows(page):
    """(trial, step) of the page's front table, in order."""
    body = re.search(r'<table id="front".*?<tbody>(.*?)</tbody>', page, re.S)
    assert body
    return [(t, int(s)) for t, s in re.findall(r'<tr data-trial="(.*?)" data-step="(\d+)">', body[1])]


@pytest.mark.parametrize("seed", range(3))
def test_every_output_shows_the_brute_force_front(tmp_path, seed):
    table = rows(seed)
    table[3]["val_macro_avg_acc"] = "nan"  # a complete, feasible point whose accuracy is not a number
    study = load_study(write_study(tmp_path, table))
    table[3]["val_macro_avg_acc"] = np.nan
    expected = brute_force_front(table)
    best = front.pareto_points(study)
    assert list(zip(best["trial_id"], best["step"], strict=True)) == expected
    written = pd.read_csv(io.BytesIO(report.front_csv(study)), dtype={"trial_id": str})
    assert list(zip(written["trial_id"], written["step"], strict=True)) == expected
    assert list(written.columns) == list(study.points.columns)
    assert table_rows(report_page.page(study)) == expected
    terminal = report.front_table(study)
    assert list(zip(*(column.cells for column in list(terminal.columns)[:2]), strict=True)) == [
        (trial, str(step)) for trial, step in expected
    ]
    assert [tuple(point) for point in traces(study)["front"]["customdata"]] == expected


def study_of(table, **changes):
    """A study in memory, with rows as dicts."""
    raw = replicates.identified(pd.DataFrame(table))
    return Study(Path("nowhere"), manifest_of(manifest(**changes), "study.json"), raw, None)


@pytest.mark.parametrize("status", STATUSES)
def test_a_measured_point_is_a_candidate_whatever_became_of_its_trial(status):
    """The dense point of an ended trial has the best accuracy at the same cost: it is the front."""
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
    drawn = traces(study)["front"]
    assert drawn["customdata"][1] == ["ended", 0] and f"trial status: {status}," in drawn["text"][1]
    page = own_text(report_page.page(study))
    assert table_rows(page) == [("whole", 1), ("ended", 0)]
    shown = "Trials of the front" in sentences.facts(study)
    assert shown == ("<dt>Trials of the front</dt>" in page) == (">trial status</button>" in page)
    assert shown == (status != "complete")
    assert f",{status}," in report.front_csv(study).decode().splitlines()[2]


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


def random_points(seed, n_configurations=8, n_seeds=1):
    """Rows of random trials of up to three steps, each of any status; ties, NaN and infeasible rows among them."""
    rng, base = np.random.default_rng(seed), rows()[0]
    made = []
    for number, replicate in itertools.product(range(n_configurations), range(n_seeds)):
        name = f"t{number}" + (f"r{replicate}" if replicate else "")
        ids = {"trial_id": name, "config_id": f"t{number}", "replicate": replicate}
        ids["status"] = str(rng.choice(STATUSES))
        for step in range(int(rng.integers(0, 4))):
            accuracy = float(rng.integers(1, 10)) / 10 if rng.random() < 0.85 else np.nan
            row = base | ids | {"step": step, "val_macro_avg_acc": accuracy, "feasible": rng.random() < 0.85}
            made.append(row | {"macs": int(rng.integers(1, 8)), "checkpoint": f"{name}/step{step}"})
    return [made[i] for i in rng.permutation(len(made))]


@pytest.mark.parametrize("seed", range(30))
def test_the_front_of_random_tables_is_the_brute_force_one_and_does_not_depend_on_status(seed):
    table = random_points(seed, 20)
    expected = brute_force_front(table)
    first = {}  # of equal points, the first in the table stands for all
    for row in table:
        if row["feasible"]:
            first.setdefault((row["val_macro_avg_acc"], row["macs"]), (row["trial_id"], row["step"]))
    values = {(r["trial_id"], r["step"]): (r["val_macro_avg_acc"], r["macs"]) for r in table}
    expected = [point for point in expected if first[values[point]] == point]
    for statuses in (None, "running", "crashed"):
        changed = table if statuses is None else [row | {"status": statuses} for row in table]
        best = front.pareto_points(study_of(changed))
        assert list(zip(best["trial_id"], best["step"], strict=True)) == expected


@pytest.mark.parametrize("seed", range(30))
def test_means_of_random_tables_are_over_all_seeds_that_measured_the_step(seed):
    """Against a loop over dicts: values, seeds, checkpoints, networks, and the front of the means."""
    table = random_points(seed, n_seeds=3)
    study = study_of(table)
    seeds = {}
    for row in sorted(table, key=lambda row: row["replicate"]):
        seeds.setdefault((row["config_id"], row["step"]), []).append(row)
    finite = {key: [r for r in found if np.isfinite(r["val_macro_avg_acc"])] for key, found in seeds.items()}
    assert study.replicated == any(len(found) >= 2 for found in finite.values())
    points = {(p["trial_id"], p["step"]): p for p in replicates.mean_points(study.raw).to_dict("records")}
    assert set(points) == set(seeds)
    means = []
    for key, found in finite.items():
        point, behind = points[key], replicates.networks(study.raw, *key)
        assert point["n_seeds"] == len(found)
        assert sorted(behind["trial_id"]) == sorted(r["trial_id"] for r in found)
        if not found:
            assert np.isnan(point["val_macro_avg_acc"]) and point["checkpoint"] == seeds[key][0]["checkpoint"]
            continue
        mean = np.mean([r["val_macro_avg_acc"] for r in found])
        assert point["val_macro_avg_acc"] == pytest.approx(mean)
        assert point["macs"] == np.round(np.mean([r["macs"] for r in found]))
        assert point["feasible"] == all(r["feasible"] for r in found)
        assert point["checkpoint"] == found[0]["checkpoint"]
        counts = {r["status"]: [s["status"] for s in found].count(r["status"]) for r in found}
        mixed = ", ".join(f"{n} {status}" for status, n in counts.items())
        assert point["status"] == (mixed if len(counts) > 1 else found[0]["status"])
        if len(found) >= 2:
            means.append(point)
    if study.replicated:
        values = {(r["val_macro_avg_acc"], r["macs"]) for r in means if r["feasible"]}
        best = front.pareto_points(study)
        kept = {v for v in values if not any(dominates(other, v, ("max", "min")) for other in values)}
        assert set(zip(best["val_macro_avg_acc"], best["macs"], strict=True)) == kept and len(best) == len(kept)


def test_the_networks_behind_a_point_of_a_second_seed_are_its_own():
    """The first seed measured nothing, so the study has no means and the point carries the second seed's name."""
    good = rows()[0] | {"config_id": "t0", "macs": 100, "bytes_fp16": 100, "feasible": True, "step": 0}
    table = [
        good | {"trial_id": "t0", "replicate": 0, "status": "failed", "val_macro_avg_acc": np.nan},
        good | {"trial_id": "t0r1", "replicate": 1, "status": "complete", "val_macro_avg_acc": 0.5},
    ]
    study = study_of(table)
    assert not study.replicated and front.pareto_points(study)["trial_id"].tolist() == ["t0r1"]
    assert replicates.networks(study.raw, "t0r1", 0)["trial_id"].tolist() == ["t0r1"]


@pytest.mark.parametrize(
    ("status", "second", "partial"),
    [
        ("running", "running", False),  # the second seed may still measure the step
        ("running", "stopped early", True),
        ("running", "crashed", True),
        ("interrupted", "failed", True),
        ("complete", "stopped early", True),
        ("complete", None, True),  # it ended before its first measurement
        ("running", None, False),
    ],
)
def test_a_mean_that_lacks_seeds_is_warned_of(status, second, partial):
    """Early stopping ends the weaker seeds, so that the mean over the others is too good."""
    good = rows()[0] | {"config_id": "t0", "macs": 100, "bytes_fp16": 100, "feasible": True, "status": "complete"}
    table = [
        good | {"trial_id": name, "replicate": number, "step": step, "macs": 100 - step, "val_macro_avg_acc": 0.5}
        for number, name in ((0, "t0"), (2, "t0r2"))
        for step in (0, 1)
    ]
    if second:
        table.append(table[0] | {"trial_id": "t0r1", "replicate": 1, "status": second, "val_macro_avg_acc": 0.2})
    study = study_of(table, status=status, seeds_per_config=3, trials=None)
    best = front.pareto_points(study)
    assert best["step"].tolist() == [1]  # the dense mean over all three seeds is lower
    assert best["val_macro_avg_acc"].tolist() == [0.5] and best["n_seeds"].tolist() == [2]
    found = [line for line in sentences.warnings(study) if "over a part of the configuration's seeds" in line]
    assert len(found) == partial
    if partial:
        assert found[0].startswith("1 point of the front")


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


def measured_by_point(table):
    """(configuration, step) -> the rows of the seeds that measured it."""
    found = {}
    for row in table:
        if np.isfinite(row["val_macro_avg_acc"]):
            found.setdefault((row["config_id"], row["step"]), []).append(row)
    return found


def test_points_of_a_replicated_study_are_means_over_the_seeds_that_measured_them(tmp_path):
    """Against numpy and scipy, row by row; class-wise accuracies too."""
    table = replicated_rows(seeds=3)
    study = load_study(write_study(tmp_path, table))
    assert study.replicated and len(study.raw) == len(table)
    expected = measured_by_point(table)
    points = {(p["trial_id"], p["step"]): p for p in study.points.to_dict("records")}
    assert set(points) == {(row["config_id"], row["step"]) for row in table}
    assert {n: sum(p["n_seeds"] == n for p in points.values()) for n in (0, 1, 2, 3)} == {0: 2, 1: 6, 2: 2, 3: 23}
    for key, seeds in expected.items():
        point, values = points[key], [row["val_macro_avg_acc"] for row in seeds]
        assert point["n_seeds"] == len(seeds)
        for column in ("val_macro_avg_acc", "val_acc/tram", "val_device_acc/s2", "macs", "sparsity"):
            assert point[column] == pytest.approx(np.mean([row[column] for row in seeds]))
        assert point["checkpoint"] == seeds[0]["checkpoint"]
        ends = [point["val_macro_avg_acc_low"], point["val_macro_avg_acc_high"]]
        if len(seeds) == 1:
            assert np.isnan([*ends, point["val_macro_avg_acc_std"]]).all()
            continue
        assert point["val_macro_avg_acc_std"] == pytest.approx(np.std(values, ddof=1))
        interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert ends == pytest.approx(np.clip(interval, 0, 1))


@pytest.mark.slow
def test_the_front_of_a_replicated_study_is_that_of_its_means(tmp_path):
    """The configuration with one seed has by far the best accuracy, and is no candidate."""
    table = replicated_rows(seeds=3)
    study = load_study(write_study(tmp_path, table, trials=None, seeds_per_config=3))
    means = [
        seeds[0] | {"trial_id": config, "val_macro_avg_acc": np.mean([s["val_macro_avg_acc"] for s in seeds])}
        for (config, _), seeds in measured_by_point(table).items()
        if len(seeds) >= 2
    ]
    expected = brute_force_front(means)
    best = front.pareto_points(study)
    assert list(zip(best["trial_id"], best["step"], strict=True)) == expected
    lucky = {row["trial_id"] for row in table if row["val_macro_avg_acc"] == 0.95}
    assert len(lucky) == 1 and not lucky & {trial for trial, _ in expected}
    stopped = {row["config_id"] for row in table if row["status"] == "stopped early"} - {"00004"}
    assert set(study.points["trial_id"][summary.roles(study) == "single"]) == lucky | stopped
    warned = " ".join(sentences.warnings(study))
    assert "1 point with one seed would be on the front" in warned
    assert {("00004", 1), ("00004", 2)} <= set(
        expected
    )  # of whose three seeds one was stopped early after its dense point
    assert "2 points of the front are means over a part of the configuration's seeds" in warned
    page, terminal = own_text(report_page.page(study)), Console(width=160, file=io.StringIO(), record=True)
    terminal.print(report.front_table(study))
    low, high = (summary.percent(best[f"val_macro_avg_acc_{end}"].iloc[0]) for end in ("low", "high"))
    assert table_rows(page) == expected
    for shown in (page, terminal.export_text()):
        assert f"{low}{summary.DASH}{high}" in shown and "seeds" in shown
    drawn = traces(study)
    bars = drawn["95 % interval over seeds"]["error_y"]
    assert bars["array"] == pytest.approx(100 * (best["val_macro_avg_acc_high"] - best["val_macro_avg_acc"]))
    assert bars["arrayminus"] == pytest.approx(100 * (best["val_macro_avg_acc"] - best["val_macro_avg_acc_low"]))
    assert len(drawn["each seed"]["x"]) == best["n_seeds"].sum()
    assert "mean of 3 seeds, sd" in drawn["front"]["text"][0]
    written = pd.read_csv(io.BytesIO(report.front_csv(study)))
    assert written["n_seeds"].tolist() == best["n_seeds"].tolist()
    assert report.write_report(study.path)["png"].stat().st_size > 20_000


def test_two_seeds_leave_the_axis_readable_and_intervals_within_0_and_1(tmp_path):
    table = [row for row in replicated_rows(seeds=2) if row["status"] == "complete"]
    for row, apart in zip(table, itertools.cycle((0.04, 0.2))):
        row["val_macro_avg_acc"] = 0.5 + apart * row["replicate"]
    study = load_study(write_study(tmp_path, table))
    assert np.nanmin(study.points["val_macro_avg_acc_low"]) == 0
    assert np.nanmax(study.points["val_macro_avg_acc_high"]) == 1
    low, high = figure_parts.y_range(study, figure_parts.measured(study))
    assert 38 <= low < 50 and 60 < high < 75


def test_single_seeds_and_old_files_are_no_means(tmp_path):
    old = load_study(write_study(tmp_path / "old", rows()))
    one = load_study(write_study(tmp_path / "one", replicated_rows(seeds=1)))
    for study in (old, one):
        assert not study.replicated and study.points is study.raw and "n_seeds" not in study.points
        assert "single run" in sentences.noise(study)[0] and "--confirm" in sentences.noise(study)[-1]
    assert old.raw["config_id"].tolist() == old.raw["trial_id"].tolist() and set(old.raw["replicate"]) == {0}


@pytest.mark.slow
def test_test_figures_of_seeds_are_averaged(tmp_path):
    table = replicated_rows(seeds=3)
    folder = write_study(tmp_path, table)
    trial, step = load_study(folder).points.query("n_seeds == 3")[["trial_id", "step"]].iloc[0]
    values = [0.41, 0.43, 0.48]
    names = [trial, f"{trial}r1", f"{trial}r2"]
    measured = [
        {"trial_id": n, "step": step, "test_macro_avg_acc": v, "test_acc/seen": v + 0.1}
        for n, v in zip(names, values, strict=True)
    ]
    write_table(folder / "test.csv", measured)
    study = load_study(folder)
    assert study.test is not None and len(study.test) == 1
    found = study.test.iloc[0]
    assert (found["trial_id"], found["step"], found["test_n_seeds"]) == (trial, step, 3)
    assert found["test_macro_avg_acc"] == pytest.approx(np.mean(values))
    assert found["test_acc/seen"] == pytest.approx(np.mean(values) + 0.1)
    interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert [found["test_macro_avg_acc_low"], found["test_macro_avg_acc_high"]] == pytest.approx(interval)
    page = own_text(report_page.page(study))
    assert "Means over seeds, at least 3 per point" in page and "44.0" in page
    write_table(folder / "test.csv", measured[:1])  # a study that was tested before it got its replicates
    found = load_study(folder).with_test().dropna(subset="test_n_seeds").iloc[0]
    assert (found["trial_id"], found["test_macro_avg_acc"], found["test_n_seeds"]) == (trial, 0.41, 1)


def test_standard_error_and_short_texts():
    assert summary.standard_error(0.5, 100) == pytest.approx(0.05)
    assert np.isnan(summary.standard_error(0.5, None))
    shown = [summary.value_text(v) for v in (0.00213, 32.0, "['3x3', '1x1']", "[0.3, 0.25]", "[]", None, np.nan)]
    assert shown == ["0.00213", "32", "3x3+1x1", "0.3/0.25", "none", summary.DASH, summary.DASH]
    config = {"config/prune.lr": [1e-3], "config/train.lr": [0.5], "config/student.base_channels": [32]}
    config |= {"config/prune.ratios.0": [0.3], "config/prune.ratios.1": [np.nan]}
    short = summary.short_config(pd.DataFrame(config))
    assert short.iloc[0].to_dict() == {"lr": "0.5", "width": "32", "prune.lr": "0.001", "ratios": "0.3"}


def test_reading_keeps_ids_and_types(tmp_path):
    table = [row | {"trial_id": name} for row, name in zip(rows()[:2], ("007", "12e4"), strict=True)]
    study = load_study(write_study(tmp_path, table))
    assert study.points["trial_id"].tolist() == ["007", "12e4"]
    assert study.points["macs"].tolist() == [row["macs"] for row in table]
    assert study.points["feasible"].dtype == bool and study.points["macs"].dtype == "int64"
    assert study.points["config/student.branches"].tolist() == [row["config/student.branches"] for row in table]


def damage_header(text):
    return text.replace("macs", "macz", 1)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("study.json", None, "no such file"),
        ("study.json", lambda text: text[:200], "not valid JSON, perhaps cut off"),
        ("study.json", lambda text: "[]", "expected an object"),
        (
            "study.json",
            lambda text: text.replace('"objectives"', '"objective"'),
            "key 'objectives' is missing",
        ),
        ("study.json", lambda text: text.replace('"min"', '"down"'), "'down'"),
        ("study.json", lambda text: text.replace('"fp16"', '"fp8"'), "allowed: fp32, fp16, int8"),
        ("points.csv", lambda text: "", "empty, not even a header"),
        ("points.csv", damage_header, "missing column.s. macs"),
        ("points.csv", lambda text: text[:-40], "row 33 has .* fields; cut off"),
        ("points.csv", lambda text: text[:-1], "no line end; cut off"),
        ("points.csv", lambda text: text + text.splitlines()[1] + "\n", "occurs twice"),
        (
            "points.csv",
            lambda text: text.replace(",complete,", ",done,", 1),
            "allowed: complete, stopped early",
        ),
        ("points.csv", lambda text: text.replace(",True,", ",yes,", 1), "allowed: True, False"),
        (
            "points.csv",
            lambda text: text.replace("00000,0,12,0.", "00000,0,12,56.", 1),
            "column val_macro_avg_acc",
        ),
        ("points.csv", lambda text: text.replace(",False,", ",True,", 1), "marked feasible, but its"),
        ("points.csv", lambda text: text.replace("00000,0,12", "00000,0,twelve", 1), "column epochs"),
        ("points.csv", lambda text: text.replace("36740168", "9" * 20), "column macs"),
    ],
)
def test_a_bad_folder_is_named_and_nothing_is_written(tmp_path, capsys, file, damage, message):
    broken = write_study(tmp_path / "study") / file
    text = broken.read_text()
    broken.unlink()
    if damage is not None:
        assert damage(text) != text
        broken.write_text(damage(text))
    before = sorted(path.name for path in broken.parent.iterdir())
    assert report.main([str(broken.parent)]) == 2
    printed = capsys.readouterr().err
    assert re.search(f"{re.escape(str(broken))}.*{message}", printed)
    if "cut off" in message and file == "points.csv":
        assert "--resume" in printed
    assert sorted(path.name for path in broken.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial_id": "twin"}, "replicate 0 of configuration 00000 is more than one trial"),
        ({"replicate": "first", "trial_id": "x"}, "column replicate: "),
    ],
)
def test_replicates_must_be_told_apart(tmp_path, change, message):
    table = replicated_rows(seeds=2)
    with pytest.raises(ResultsError, match=message):
        load_study(write_study(tmp_path, [*table, table[0] | change]))


def test_test_rows_must_be_known(tmp_path):
    folder = write_study(tmp_path)
    write_table(folder / "test.csv", [{"trial_id": "99999", "step": 0, "test_macro_avg_acc": 0.5}])
    with pytest.raises(ResultsError, match=r"test.csv: trial 99999 step 0 is not in points.csv"):
        load_study(folder)


def test_test_split_is_shown_where_it_was_opened(tmp_path):
    folder = write_study(tmp_path)
    trial, step = brute_force_front(rows())[0]
    write_table(
        folder / "test.csv",
        [
            {
                "trial_id": trial,
                "step": step,
                "test_macro_avg_acc": 0.4321,
                "test_acc/unseen": 0.3987,
                "test_loss": 1.5,
            }
        ],
    )
    study = load_study(folder)
    page = report_page.page(study)
    assert "opened once, for the 1 chosen point" in page and "<h2>Test split</h2>" in page
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(report.front_table(study))
    text = console.export_text()
    assert "test %" in text and "43.2" in text and "alpha\N{NO-BREAK SPACE}" in text
    hovers = traces(study)["front"]["text"]
    assert "test accuracy 43.2 % (unseen 39.9)" in hovers[0] and "test" not in hovers[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, "points.csv does not exist"),
        ([rows()[0]], "1 row in .*, 1 over a limit"),
        (
            [row for row in rows() if row["status"] == "failed" or not row["feasible"]],
            "7 rows in .*, 5 over a limit, 2 without finite objectives",
        ),
        ([row for row in rows() if not row["feasible"]], "over a limit"),
    ],
)
def test_a_study_without_a_front_says_so(tmp_path, capsys, table, reason):
    folder = write_study(tmp_path, table, trials=None)
    if table is None:
        (folder / "points.csv").unlink()
    assert report.main([str(folder)]) == 0
    assert re.search(f"No feasible point yet: .*{reason}", " ".join(capsys.readouterr().out.split()))
    page = (folder / "report.html").read_text()
    assert "No feasible point yet" in page and '<table id="front"' not in page
    assert len(pd.read_csv(folder / "front.csv")) == 0
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("opened", [False, True])
def test_a_lost_points_file_is_named_with_its_remedy(tmp_path, capsys, opened):
    """The study trained trials, so the report must not say that nothing was measured."""
    counts = None if opened else {"complete": 1, "rejected": 3}
    folder = write_study(tmp_path, trials=counts)
    if opened:
        write_table(folder / "test.csv", [{"trial_id": "00002", "step": 2, "test_macro_avg_acc": 0.5}])
    (folder / "points.csv").unlink()
    study = load_study(folder)
    assert study.points_missing and len(study.points) == 0
    assert report.main([str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    page = (folder / "report.html").read_text()
    for text in (printed, page):
        assert str(folder / "points.csv") in text and "--resume" in text
        assert "measured point" not in text and "No feasible point" not in text and "points.csv holds" not in text
    new = load_study(write_study(tmp_path / "new", trials={"rejected": 3}))
    assert not new.points_missing
    (new.path / "points.csv").unlink()
    assert not load_study(new.path).points_missing  # only samples were rejected


def test_a_table_in_memory_takes_the_place_of_the_file(tmp_path):
    folder = write_study(tmp_path)
    expected, text = load_study(folder), (folder / "points.csv").read_text()
    header = text.splitlines(keepends=True)[0]
    for content in (None, "cut off", header):
        (folder / "points.csv").unlink(missing_ok=True)
        if content is not None:
            (folder / "points.csv").write_text(content)
        study = load_study(folder, text)
        pd.testing.assert_frame_equal(study.raw, expected.raw)
        assert not study.points_missing
        empty = load_study(folder, header)
        assert len(empty.raw) == 0 and not empty.points_missing and front.pareto_points(empty).empty
    pd.testing.assert_frame_equal(points_table(text, folder / "points.csv"), expected.raw)
    with pytest.raises(ResultsError, match=re.escape(str(folder / "elsewhere"))):
        points_table(text[:-1], folder / "elsewhere")


def test_accepted_changes_are_warned_of(tmp_path):
    changes = [
        {"time": "2026-01-05T09:31:00+00:00", "what": "the code has changed: data/tau.py <changed>"},
        {"time": "2026-01-06T09:31:00+00:00", "what": "the space has changed: train.lr"},
    ]
    study = load_study(write_study(tmp_path, changes=changes))
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(report.front_table(study))
    page, printed = own_text(report_page.page(study)), console.export_text()
    for change in changes:
        assert change["time"] in page and html.escape(change["what"]) in page
        assert change["time"] in printed and change["what"] in printed
    assert page.count("--allow-changes") == printed.count("--allow-changes") == 2
    assert "--allow-changes" not in own_text(report_page.page(load_study(write_study(tmp_path / "same"))))


def test_the_page_shows_the_facts_of_the_data_but_no_hashes(tmp_path):
    dataset = manifest()["dataset"] | {"fingerprint": {"clips": "5eedbeef"}, "notes": ["left out: a.wav <cut off>"]}
    page = own_text(report_page.page(load_study(write_study(tmp_path, dataset=dataset))))
    assert "n_train 1600, n_validation 420" in page and "left out: a.wav &lt;cut off&gt;" in page
    assert "fingerprint" not in page and "5eedbeef" not in page


def space_table(page):
    """parameter -> (range, sampled, on the front) of the page's table of the search space."""
    section = page.split("<h2>Hyper-parameters explored</h2>")[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)]
    return {row[0]: tuple(map(html.unescape, row[1:])) for row in rows if row}


def test_ranges_and_samples_of_a_space_are_shown_in_words(tmp_path):
    table = rows()
    study = load_study(write_study(tmp_path, table, space=load_space("kd_prune").as_dict()))
    shown = space_table(report_page.page(study))
    assert {name: texts[0] for name, texts in shown.items()} == {
        "distill.kd_alpha": "0.1 to 0.9",
        "distill.kd_temp": "1.0 to 6.0",
        "train.lr": "0.002 to 0.02, log scale",
        "student.base_channels": "8 to 32, step 8",
        "student.branches": "one of 3x3, 3x3+1x1+identity, 3x3+3x1+1x3, 3x3+3x1+1x3+1x1+identity",
        "prune.ratios": "0.1 to 0.4 for each of prune.steps (1 to 3)",
    }
    ratios = [ratio for row in table for ratio in json.loads(row["config/prune.ratios"])]
    assert shown["prune.ratios"][1] == f"{min(ratios):.3g} to {max(ratios):.3g}"
    assert shown["student.base_channels"][1] == "8, 16, 24, 32, 48"


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_is_shown_without_its_notation(tmp_path, path):
    space = load_space(path.stem)
    shown = space_table(report_page.page(load_study(write_study(tmp_path, space=space.as_dict()))))
    assert list(shown) == list(space.parameters)
    for texts in shown.values():
        assert not set("{}[]'\"") & set("".join(texts))


def test_a_partial_manifest_leaves_lines_out(tmp_path):
    folder = write_study(tmp_path)
    full = own_text(report_page.page(load_study(folder)))
    (folder / "study.json").write_text(json.dumps({"name": "old", "objectives": manifest()["objectives"]}))
    study = load_study(folder)
    bare = own_text(report_page.page(study))
    for text in (
        "Baseline",
        "Teachers",
        "<dt>Limits",
        "Hypervolume",
        "<dt>Seed",
        "deployed form",
        "standard error",
    ):
        assert text in full and text not in bare
    assert '"name": "limit"' in full and '"name": "limit"' not in bare


def test_the_page_is_self_contained_and_escapes_names(tmp_path):
    name = "<script>alert(1)</script> $body [red]"
    table = rows()
    for row in table:
        row["config/student.branches"] = row["trial_id"] = f"</script><b>{row['trial_id']}"
    folder = write_study(tmp_path, table, name=name)
    study = load_study(folder)
    page = report_page.page(study)
    assert page.count("* plotly.js v") == 1  # plotly.js once
    own = own_text(page)
    assert not re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?(?:https?:)?//""", own)
    assert not re.findall(r"https?://", own) and "@import" not in own
    assert own.count("<script") == own.count("</script>") == 3
    assert "alert(1)</script>" not in own and "default-src 'none'" in own
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(report.front_table(study))
    assert name in console.export_text()


def test_a_terminal_of_80_characters_shows_every_value(tmp_path):
    study = load_study(write_study(tmp_path))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report.front_table(study))
    lines = console.export_text().splitlines()
    start = next(line.index("configuration") for line in lines if "configuration" in line)
    shown = "".join("".join(line[start:].split()) for line in lines)  # a long value may break over two lines
    for _, sampled in summary.short_config(front.pareto_points(study)).iterrows():
        assert ",".join(f"{name}{value}" for name, value in sampled.items()) in shown


@pytest.mark.slow
def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    study = write_study(tmp_path)
    paths = report.write_report(study)
    assert {key: path.name for key, path in paths.items()} == {
        "csv": "front.csv", "png": "front.png", "html": "report.html"}  # fmt: skip
    old = {path: path.read_bytes() for path in study.iterdir()}
    write_table(study / "points.csv", rows(1))
    old[study / "points.csv"] = (study / "points.csv").read_bytes()

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(report_page, "page", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.write_report(study)
    assert {path: path.read_bytes() for path in study.iterdir()} == old


@pytest.mark.slow
def test_both_commands_work(tmp_path, monkeypatch):
    folder = write_study(tmp_path)
    file = subprocess.run(
        [sys.executable, ROOT / "analysis/report.py", folder],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert brute_force_front(rows())[0][0] in file.stdout and str(folder / "report.html") in file.stdout
    assert "no point was measured on test" in file.stdout
    with pytest.raises(SystemExit) as end, monkeypatch.context() as patch:  # python -m analysis.report STUDY
        patch.setattr(sys, "argv", ["report", str(folder / "absent")])
        patch.delitem(sys.modules, "analysis.report")
        runpy.run_module("analysis.report", run_name="__main__")
    assert end.value.code == 2


def test_analysis_imports_nothing_of_the_other_floors():
    allowed = {"analysis", "matplotlib", "numpy", "pandas", "plotly", "rich", "scipy"} | sys.stdlib_module_names
    for file in (ROOT / "analysis").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names if name != "data.files"} - allowed, file
