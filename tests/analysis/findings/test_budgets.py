"""What a budget buys, and the knee of a front: against brute force and hand-made fronts."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import front
from analysis.findings import budgets
from analysis.page import html as report_page
from analysis.results import Study, load_study, take
from tests.support.analysis.outputs import section_of
from tests.support.example_study import LIMITS, replicated_rows, rows, write_study


def study_with(tmp_path: Path, points: list[tuple[float, float]], **changes: object) -> Study:
    """Return a study whose points have the given (MACs, accuracy); bytes at fp16 are MACs / 1000."""
    template = rows(trials=1)[0]
    made = [
        template
        | {"trial_id": f"t{i:04d}", "macs": int(macs), "val_macro_avg_acc": accuracy, "bytes_fp16": int(macs / 1e3)}
        | {"feasible": True, "status": "complete"}
        for i, (macs, accuracy) in enumerate(points)
    ]
    return load_study(write_study(tmp_path, made, **changes))


def bought(study: Study) -> dict[tuple[str, float], tuple[str, int] | None]:
    return {
        (b.column, b.limit): None if b.point is None else (b.point["trial_id"], b.point["step"])
        for b in budgets.budgets(study)
    }


@pytest.mark.parametrize("seed", range(5))
def test_budgets_equal_brute_force(tmp_path: Path, seed: int) -> None:
    made = replicated_rows(2, seed=seed) if seed % 2 else rows(seed)
    study = load_study(write_study(tmp_path, made))
    found = bought(study)
    allowed = take(study.points, front.candidates(study)).to_dict("records")
    assert {limit for column, limit in found if column == "macs"} == {*budgets.MACS[:-1], LIMITS["macs"]}
    for (column, limit), name in found.items():
        within = [p for p in allowed if p[column] <= limit]
        if not within:
            assert name is None
            continue
        top = max(p["val_macro_avg_acc"] for p in within)
        (trial, step) = name or ("", -1)
        point = next(p for p in within if (p["trial_id"], p["step"]) == (trial, step))
        assert point["val_macro_avg_acc"] == top
        assert point[column] == min(p[column] for p in within if p["val_macro_avg_acc"] == top)


def test_budgets_end_at_the_limits_of_the_study(tmp_path: Path) -> None:
    limits = {"macs": 7_000_000, "bytes": None, "precision": "fp16"}
    study = study_with(tmp_path, [(1.5e6, 0.5), (6e6, 0.6)], limits=limits)
    found = bought(study)
    assert [limit for column, limit in found if column == "macs"] == [1e6, 2e6, 5e6, 7e6]
    assert [limit for column, limit in found if column != "macs"] == list(budgets.BYTES)
    assert found["macs", 1e6] is None
    assert found["macs", 5e6] == ("t0000", 0) and found["macs", 7e6] == ("t0001", 0)


def test_no_candidate_buys_nothing(tmp_path: Path) -> None:
    for name, made in {
        "infeasible": [r for r in rows() if not r["feasible"]],
        "failed": [r for r in rows() if np.isnan(r["val_macro_avg_acc"])],
    }.items():
        study = load_study(write_study(tmp_path / name, made))
        assert budgets.budgets(study) == [] and budgets.knee(study) is None
        assert "What each budget buys" not in report_page.page(study)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1e6, 0.2), (2e6, 0.5), (1e7, 0.6)], 1),
        ([(1e6, 0.2), (4e6, 0.3), (1e7, 0.6)], None),  # below the line
        ([(1e6, 0.2), (1e7, 0.6)], None),
        ([(1e6, 0.2), (1e6, 0.2), (1e7, 0.6)], None),  # two equal points are one
        ([(1e6, 0.3), (2e6, 0.5), (4e6, 0.58), (1e7, 0.6)], 1),
    ],
)
def test_knee(tmp_path: Path, points: list[tuple[float, float]], expected: int | None) -> None:
    found = budgets.knee(study_with(tmp_path, points))
    assert found == (None if expected is None else (f"t{expected:04d}", 0))


def test_the_page_shows_networks_their_commands_and_the_knee(tmp_path: Path) -> None:
    study = study_with(tmp_path / "it's", [(9e5, 0.31), (1.9e6, 0.5), (1.2e7, 0.6)])
    gone = section_of(report_page.page(study), "budgets")
    assert "deploy.py" not in gone and "checkpoints/" in gone
    for checkpoint in study.points["checkpoint"]:
        (study.path / checkpoint).mkdir(parents=True, exist_ok=True)
    section = section_of(report_page.page(study), "budgets")
    texts = [
        [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr[ >].*?</tr>", section.split("<tbody>")[1])
    ]
    table = {row[0]: row[1:] for row in texts}
    assert list(table)[:6] == ["1 M MACs", "2 M MACs", "5 M MACs", "10 M MACs", "20 M MACs", "30 M MACs"]
    assert list(table)[6:] == ["16 kB", "32 kB", "64 kB", "128 kB"]
    error = 100 * (0.5 * 0.5 / 420) ** 0.5
    assert table["2 M MACs"][:5] == [f"50.0 ± {error:.1f}", "1.90", "1.9", "t0001", "0"]
    assert table["16 kB"][3] == "t0002"
    command = table["2 M MACs"][-1]
    assert command.startswith("python trainables/deploy.py --checkpoint=") and "/it'\"'\"'s/checkpoints/" in command
    assert "trial t0001 step 0: 50.0 % at 1.90 M MACs" in html.unescape(section)


def test_test_accuracies_are_shown_when_test_was_opened(tmp_path: Path) -> None:
    folder = write_study(tmp_path, rows())
    study = load_study(folder)
    best = front.pareto_points(study)
    tests = best[["trial_id", "step"]].assign(test_macro_avg_acc=0.4321)
    pd.DataFrame(tests).to_csv(folder / "test.csv", index=False)
    section = section_of(report_page.page(load_study(folder)), "budgets")
    assert "<th>test %</th>" in section and "43.2" in section


def test_a_network_in_an_object_store_is_to_be_copied_first(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, rows(), remote="s3://bucket/studies/x"))
    section = section_of(report_page.page(study), "budgets")
    assert "copy s3://bucket/studies/x/checkpoints/" in section and "--checkpoint=" not in section


@pytest.mark.parametrize("sizes", [[(0.5, 1e6, 5000), (0.7, 2e6, 4500), (0.46, 3e6, 2000), (0.45, 9e6, 1000)]])
def test_the_knee_is_one_of_accuracy_and_macs_also_with_bytes_as_objective(tmp_path: Path, sizes) -> None:
    """Points that are on the front because of their bytes lie below the line of accuracy over MACs."""
    base = next(row for row in rows() if row["step"] == 0)
    for extra, expected in (([], None), ([(0.72, 8e6, 4600)], ("t1", 0))):
        table = [
            base
            | {"trial_id": f"t{i}", "checkpoint": f"x/t{i}", "feasible": True, "status": "complete"}
            | {"val_macro_avg_acc": accuracy, "macs": int(macs), "bytes_fp16": size}
            for i, (accuracy, macs, size) in enumerate([*sizes, *extra])
        ]
        objectives = {"val_macro_avg_acc": "max", "macs": "min", "bytes": "min"}
        study = load_study(write_study(tmp_path / str(len(extra)), table, objectives=objectives))
        assert len(front.pareto_points(study)) == len(table)
        assert budgets.knee(study) == expected
