"""Rank correlations: against scipy, against simulated studies with a known answer, and what the report says of them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from analysis.findings import ranks
from analysis.page import html as report_page
from analysis.results import load_study
from analysis.typed_json import ResultsError
from tests.support.analysis.outputs import section_of
from tests.support.example_study import rows, write_study, write_table


@pytest.mark.parametrize("seed", range(20))
def test_spearman_equals_scipy_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
    assert ranks.spearman(x, y) == pytest.approx(spearmanr(x, y)[0], abs=1e-12)
    assert np.isnan(ranks.spearman(x, np.ones(12)))


def test_an_interval_holds_the_correlation_and_few_pairs_have_none() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    for strength, low, high in ((3.0, 0.85, 1.0), (0.0, -0.4, 0.4)):
        found = ranks.correlation(x, strength * x + rng.normal(size=60))
        assert found and found.n == 60 and low <= found.low <= found.rho <= found.high <= high
    y = np.append(x, np.nan)
    assert (found := ranks.correlation(y, y)) and found.n == 60 and found.rho == pytest.approx(1)
    assert ranks.correlation(x[:4], x[:4]) is None and ranks.correlation(x, np.ones(60)) is None


def test_validation_and_test(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    text = section_of(report_page.page(load_study(folder)), "belief")
    assert "the test split is closed" in text and "alike" not in text
    tested = [row for row in rows() if row["feasible"] and np.isfinite(row["val_macro_avg_acc"])]
    for sign, words in ((1, "nearly alike"), (-1, "in opposite orders")):
        table = [
            {
                "trial_id": r["trial_id"],
                "step": r["step"],
                "test_macro_avg_acc": 0.5 + sign * r["val_macro_avg_acc"] / 2,
            }
            for r in tested
        ]
        write_table(folder / "test.csv", table)
        assert words in section_of(report_page.page(load_study(folder)), "belief")
    write_table(folder / "test.csv", table[:3])
    text = section_of(report_page.page(load_study(folder)), "belief")
    assert "cannot be said: fewer than 5 networks" in text


def test_two_studies_of_the_same_configurations(tmp_path: Path) -> None:
    table = rows()
    study = load_study(write_study(tmp_path / "a", table))
    same = write_study(tmp_path / "b", [r | {"trial_id": f"x{r['trial_id']}"} for r in table], name="longer")
    found = ranks.between_studies(replace(study, compare_with=same))
    assert found and found[0] == "longer" and found[1] and found[1].rho == pytest.approx(1)
    assert found[2] == len(table)
    assert ranks.between_studies(study) is None
    fewer = [{k: v for k, v in r.items() if k != "config/train.lr"} for r in table]
    other = [r | {"config/train.lr": 0.5} for r in table]
    for name, changed, reason in (("fewer", fewer, "train.lr"), ("other", other, "no configuration")):
        folder = write_study(tmp_path / name, changed)
        with pytest.raises(ResultsError, match=f"{re.escape(str(folder))}.*{reason}"):
            ranks.between_studies(replace(study, compare_with=folder))


def curves(folder: Path, dense: dict[str, list[float]]) -> None:
    """Write results.csv of trials: dense curves, and two epochs after a prune step."""
    for trial, values in dense.items():
        table = [{"stage": 0, "epoch": i + 1, "val_macro_avg_acc": v} for i, v in enumerate(values)]
        table += [{"stage": 1, "epoch": i + 1, "val_macro_avg_acc": 0.9} for i in range(2)]
        place = folder / "checkpoints" / trial
        place.mkdir(parents=True)
        write_table(place / "results.csv", table)


def test_early_epochs_of_trials_whose_order_turns(tmp_path: Path) -> None:
    """In the first three epochs the trials have the opposite order of the end; from the fourth on they have its order.

    The best accuracy so far turns later than the accuracy itself.
    """
    folder = write_study(tmp_path)
    trials = [row["trial_id"] for row in rows() if row["step"] == 0 and row["status"] == "complete"][:8]
    dense = {name: [0.3 - i / 100] * 3 + [0.5 + i / 100] * 5 for i, name in enumerate(trials)}
    curves(folder, dense)
    study = load_study(folder)
    found, n = ranks.at_epochs(study)
    assert n == 8 and [epoch for epoch, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [round(rho) for _, rho in found] == [-1, -1, -1, 1, 1, 1, 1]
    section = section_of(report_page.page(study), "belief")
    assert '<table id="epochs"' in section and "-1.00" in section and "the 8 trials" in section
    (folder / "checkpoints" / trials[0] / "results.csv").write_text("stage,epoch,val_macro_avg_acc\n0,1,x\n")
    assert ranks.at_epochs(load_study(folder))[1] == 7
    for name in trials[1:5]:
        (folder / "checkpoints" / name / "results.csv").unlink()
    assert ranks.at_epochs(load_study(folder)) == ([], 3)
