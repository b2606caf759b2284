"""Stopped, failed and crashed trials of a study."""

import dataclasses
from typing import Any

import pandas as pd
import pytest

from analysis.findings.stops import failures, saving, stops
from analysis.results import Study, load_study
from tests.support.example_study import trial_rows, write_study, write_timed_study


@pytest.fixture
def study(tmp_path) -> Study:
    return load_study(write_timed_study(tmp_path / "study"))


def changed(study: Study, **values: dict[str, Any]) -> Study:
    """Return `study` with other values in trials.csv: trial -> {column: value}. The key is t00003 for trial 00003."""
    assert study.trials is not None
    table = study.trials.set_index("trial_id", drop=False).astype(object)
    for name, new in values.items():
        for column, value in new.items():
            table.loc[name.removeprefix("t"), column] = value
    return dataclasses.replace(study, trials=pd.DataFrame(table.reset_index(drop=True)))


def test_stops_are_grouped_by_cause_and_epoch(study: Study) -> None:
    (stop,) = stops(study)
    assert (stop.by, stop.stage, stop.epochs, stop.saved) == ("mo_asha", 0, 3, 4 * 17)
    assert sorted(stop.trials) == ["00012", "00013", "00014", "00015"]
    two = changed(study, t00012={"stopped_by": "the trial itself"}, t00013={"epochs": 16, "stage": 1})
    found = [(s.by, s.stage, s.epochs, len(s.trials), s.saved) for s in stops(two)]
    assert found == [("mo_asha", 0, 3, 2, 34), ("the trial itself", 0, 3, 1, 17), ("mo_asha", 1, 16, 1, 4)]


def test_saved_epochs_are_those_of_the_scheduler(study: Study) -> None:
    assert study.trials is not None
    closed = study.trials[study.trials["status"].isin(["complete", "stopped early"])]
    planned = sum(closed["planned_epochs"].tolist())
    assert saving(study) == (4 * 17, planned)
    assert saving(changed(study, t00012={"stopped_by": "ray tune"})) == (3 * 17, planned)
    assert saving(changed(study, t00012={"stopped_by": "scheduler"})) == (4 * 17, planned)  # journal of format 1
    unknown = changed(study, t00012={"planned_epochs": float("nan")})
    assert saving(unknown) == (3 * 17, planned - 20) and stops(unknown)[0].saved is None
    assert saving(changed(study, t00012={"epochs": 25})) == (3 * 17, planned)  # the plan was changed meanwhile


def test_failures_are_grouped_by_reason(study: Study) -> None:
    (failure,) = failures(study)
    assert (failure.status, failure.reason, sorted(failure.trials)) == ("failed", "the loss is nan", ["00016", "00017"])
    assert not failure.varied
    numbers = changed(
        study, t00016={"reason": "epoch 3: the loss is nan"}, t00017={"reason": "epoch 12: the loss is nan"}
    )
    (failure,) = failures(numbers)
    assert failure.varied and failure.reason in ("epoch 3: the loss is nan", "epoch 12: the loss is nan")
    two = changed(study, t00016={"status": "crashed", "reason": ""}, t00000={"status": "failed", "reason": "again"})
    assert {(f.status, f.reason) for f in failures(two)} == {
        ("crashed", "unknown"),
        ("failed", "again"),
        ("failed", "the loss is nan"),
    }


def test_without_trials_nothing_is_known(tmp_path) -> None:
    old = load_study(write_study(tmp_path / "study"))
    assert old.trials is None
    assert (stops(old), failures(old), saving(old)) == ([], [], None)
    empty = dataclasses.replace(old, trials=pd.DataFrame(columns=list(trial_rows([])) or ["status"]))
    assert (stops(empty), failures(empty), saving(empty)) == ([], [], None)
