"""The importance of parameters: equal to Optuna's evaluator on the same points; sentences about narrow ranges."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from analysis.findings import importance
from analysis.page import html as report_page
from analysis.results import load_study
from tests.support.analysis.outputs import section_of
from tests.support.example_study import rows, write_study

SPACE: dict[str, Any] = {
    "train.lr": {"loguniform": [0.001, 0.1]},
    "distill.kd_temp": {"uniform": [1.0, 8.0]},
    "distill.kd_alpha": {"uniform": [0.0, 1.0], "step": 0.125},
    "student.base_channels": {"int": [8, 32], "step": 8},
    "student.n": {"int": [1, 400]},
    "student.branches": {"choice": ["a", "b", "c"]},
}
DISTRIBUTIONS = {
    "train.lr": FloatDistribution(0.001, 0.1, log=True),
    "distill.kd_temp": FloatDistribution(1.0, 8.0),
    "distill.kd_alpha": FloatDistribution(0.0, 1.0, step=0.125),
    "student.base_channels": IntDistribution(8, 32, step=8),
    "student.n": IntDistribution(1, 400),
    "student.branches": CategoricalDistribution(["a", "b", "c"]),
}


def points(seed: int, n: int) -> list[dict[str, Any]]:
    """Return `n` points with random values of the parameters and an accuracy that depends on some of them."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        values = {
            "train.lr": float(10 ** rng.uniform(-3, -1)),
            "distill.kd_temp": float(rng.uniform(1, 8)),
            "distill.kd_alpha": float(rng.integers(9) / 8),
            "student.base_channels": int(8 * rng.integers(1, 5)),
            "student.n": int(rng.integers(1, 401)),
            "student.branches": str(rng.choice(["a", "b", "c"])),
        }
        accuracy = 0.5 - 0.1 * (math.log10(values["train.lr"]) + 2) ** 2 + 0.05 * (values["student.branches"] == "b")
        template = rows(trials=1)[0]
        made.append(
            {k: v for k, v in template.items() if not k.startswith("config/")}
            | {"trial_id": f"t{i:04d}", "step": 0, "status": "complete", "feasible": True}
            | {"val_macro_avg_acc": round(accuracy + rng.normal(0, 0.01), 6)}
            | {"macs": int(1e5 * values["student.base_channels"] + values["student.n"]), "bytes_fp16": 9000}
            | {f"config/{key}": value for key, value in values.items()}
        )
    return made


def optunas(made: list[dict[str, Any]], objective: str, sign: float, share: float) -> dict[str, float]:
    study = optuna.create_study()
    for point in made:
        params = {key: point[f"config/{key}"] for key in DISTRIBUTIONS}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=DISTRIBUTIONS, value=sign * point[objective])  # type: ignore[arg-type]
        )
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share))


@pytest.mark.parametrize(("seed", "n"), [(0, 12), (1, 40), (2, 160)])
def test_importance_equals_optunas(tmp_path: Path, seed: int, n: int) -> None:
    made = points(seed, n)
    study = load_study(write_study(tmp_path, made, space={"name": "s", "parameters": SPACE}))
    found = importance.importances(study)
    for objective, sign in (("val_macro_avg_acc", -1.0), ("macs", 1.0)):
        expected = optunas(made, objective, sign, importance.quantile(n))
        assert found[objective] == pytest.approx(expected, abs=1e-9)
        assert sum(found[objective].values()) == pytest.approx(1)
    if n > 100:
        assert next(iter(found["val_macro_avg_acc"])) == "train.lr"
        assert next(iter(found["macs"])) == "student.base_channels"


def test_few_points_and_fixed_parameters_have_no_importance(tmp_path: Path) -> None:
    few = load_study(write_study(tmp_path / "few", points(0, 9), space={"name": "s", "parameters": SPACE}))
    assert importance.importances(few) == {} and "What mattered" not in report_page.page(few)
    fixed = [p | {f"config/{key}": points(0, 1)[0][f"config/{key}"] for key in SPACE} for p in points(0, 20)]
    study = load_study(write_study(tmp_path / "fixed", fixed, space={"name": "s", "parameters": SPACE}))
    assert importance.importances(study) == {}
    unknown = load_study(write_study(tmp_path / "unknown", points(0, 20), space={"name": "s"}))
    assert importance.importances(unknown) == {}


def test_the_page_shows_importances_and_prune_steps(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, rows()))
    section = section_of(report_page.page(study), "importance")
    assert "prune steps" in section and "student.base_channels" in section and "prune.ratios" not in section
    assert "validation accuracy" in section and "MACs" in section


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([32, 32, 32, 16], "3 of 4 points of the front have the largest student.base_channels (32)"),
        ([8, 8, 8], "3 of 3 points of the front have the smallest student.base_channels (8)"),
        ([32, 32, 16, 8], ""),
        ([32, 32], ""),
    ],
)
def test_narrow_ranges_are_named(tmp_path: Path, values: list[int], expected: str) -> None:
    study = load_study(write_study(tmp_path, points(0, 12), space={"name": "s", "parameters": SPACE}))
    lines = importance.at_edges(study, [{"config/student.base_channels": value} for value in values])
    assert [line.split(": consider")[0] for line in lines] == ([expected] if expected else [])


def test_a_continuous_range_is_narrow_if_values_lie_near_its_end(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, points(0, 12), space={"name": "s", "parameters": SPACE}))
    near = [{"config/train.lr": value} for value in (0.099, 0.08, 0.07, 0.002)]
    (line,) = importance.at_edges(study, near)
    assert line.startswith("3 of 4 points of the front have a train.lr near the largest (0.1)")
    assert importance.at_edges(study, [{"config/train.lr": value} for value in (0.05, 0.04, 0.03, 0.002)]) == []


def test_parameters_with_little_effect_are_named_in_large_studies() -> None:
    found = {
        "val_macro_avg_acc": {"lr": 0.9, "width": 0.02, "temp": 0.02, "alpha": 0.01, importance.STEPS: 0.0},
        "macs": {"lr": 0.1, "width": 0.8, "temp": 0.01, "alpha": 0.029, importance.STEPS: 0.0},
    }
    assert ": temp, alpha." in importance.without_effect(found, 50)
    assert importance.without_effect(found, 49) == importance.without_effect({}, 99) == ""
    assert importance.without_effect({"macs": {"lr": 0.5, "width": 0.5}}, 99) == ""


def test_a_long_range_of_integers_names_no_end_that_no_point_has(tmp_path: Path) -> None:
    space = {"name": "s", "parameters": {"student.base_channels": {"int": [1, 1000]}}}
    study = load_study(write_study(tmp_path, rows(), space=space))
    points = [{"config/student.base_channels": value} for value in (991, 992, 993, 5)]
    assert "near the largest (1000)" in " ".join(importance.at_edges(study, points))
