"""Replicates: a point is the mean over the seeds that measured it."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from analysis import front, outputs, replicates, summary
from analysis.figures import parts
from analysis.page import html as report_page
from analysis.page import sentences
from analysis.results import load_study
from tests.support.analysis.outputs import (
    brute_force_front,
    dominates,
    drawn,
    own_text,
    random_points,
    study_of,
    table_rows,
    traces,
)
from tests.support.example_study import replicated_rows, rows, write_study, write_table
from tests.support.marks import rest_slow


@pytest.mark.parametrize("seed", rest_slow(range(30), 5))
def test_means_of_random_tables_are_over_all_seeds_that_measured_the_step(seed):
    """Compare values, seeds, checkpoints, networks and the front of the means with a loop over dicts."""
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
    """Early stopping ends the weaker seeds, so the mean over the remaining ones is too optimistic."""
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


def measured_by_point(table):
    """Return (configuration, step) -> rows of the seeds that measured this step."""
    found = {}
    for row in table:
        if np.isfinite(row["val_macro_avg_acc"]):
            found.setdefault((row["config_id"], row["step"]), []).append(row)
    return found


def test_points_of_a_replicated_study_are_means_over_the_seeds_that_measured_them(tmp_path):
    """Compare each row, including class-wise accuracies, with numpy and scipy."""
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
    """The configuration with one seed only has the best accuracy by far, but is not a candidate."""
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
    )  # one of its three seeds was stopped early after the dense point
    assert "2 points of the front are means over a part of the configuration's seeds" in warned
    page, terminal = own_text(report_page.page(study)), Console(width=160, file=io.StringIO(), record=True)
    terminal.print(outputs.front_table(study))
    low, high = (summary.percent(best[f"val_macro_avg_acc_{end}"].iloc[0]) for end in ("low", "high"))
    assert table_rows(page) == expected
    for shown in (page, terminal.export_text()):
        assert f"{low}{summary.DASH}{high}" in shown and "seeds" in shown
    lines = traces(study)
    bars = lines["95 % interval over seeds"]["error_y"]
    assert bars["array"] == pytest.approx(100 * (best["val_macro_avg_acc_high"] - best["val_macro_avg_acc"]))
    assert bars["arrayminus"] == pytest.approx(100 * (best["val_macro_avg_acc"] - best["val_macro_avg_acc_low"]))
    assert len(lines["each seed"]["x"]) == best["n_seeds"].sum()
    assert "mean of 3 seeds, sd" in drawn(study, "front")[0]["validation accuracy"]
    written = pd.read_csv(io.BytesIO(outputs.front_csv(study)))
    assert written["n_seeds"].tolist() == best["n_seeds"].tolist()
    assert outputs.write_report(study.path)["png"].stat().st_size > 20_000


def test_two_seeds_leave_the_axis_readable_and_intervals_within_0_and_1(tmp_path):
    table = [row for row in replicated_rows(seeds=2) if row["status"] == "complete"]
    for row, apart in zip(table, itertools.cycle((0.04, 0.2))):
        row["val_macro_avg_acc"] = 0.5 + apart * row["replicate"]
    study = load_study(write_study(tmp_path, table))
    assert np.nanmin(study.points["val_macro_avg_acc_low"]) == 0
    assert np.nanmax(study.points["val_macro_avg_acc_high"]) == 1
    low, high = parts.y_range(study, parts.measured(study))
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
    write_table(folder / "test.csv", measured[:1])  # the test split was opened before the replicates were added
    found = load_study(folder).with_test().dropna(subset="test_n_seeds").iloc[0]
    assert (found["trial_id"], found["test_macro_avg_acc"], found["test_n_seeds"]) == (trial, 0.41, 1)


def test_an_empty_cell_of_another_configuration_does_not_break_front_csv(tmp_path):
    table = [row for row in replicated_rows(seeds=2) if row["status"] == "complete"]
    for row in table:
        row["epochs"] += row["replicate"]  # a mean of 12.5 epochs
    table[-1]["epochs"] = ""
    study = load_study(write_study(tmp_path, table))
    written = pd.read_csv(io.BytesIO(outputs.front_csv(study)))
    assert len(written) and not (written["epochs"].dropna().to_numpy(float) % 1).any()
