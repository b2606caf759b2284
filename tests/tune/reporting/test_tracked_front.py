"""A complete search is one more W&B run, with the front as a table; an error of W&B does not end the study."""

import dataclasses
import json
from pathlib import Path

import pytest
import wandb

from analysis import front
from analysis.results import Study
from tests.support.tune.live import running_study
from trainables.outputs import tracking
from tune.commands.status import current_study
from tune.reporting.tracked_front import search_summary, track_front
from tune.study.journal import read_state
from tune.study.state import StudyState


@pytest.fixture
def searched(tmp_path: Path) -> tuple[Study, StudyState]:
    folder = running_study(tmp_path / "study")
    state = read_state(folder)
    return current_study(folder, state), state


def test_the_files_of_an_offline_run_contain_the_front_and_the_summary(searched: tuple[Study, StudyState]) -> None:
    study, state = searched
    (run,) = track_front(study, state, "offline")
    assert run.parent == study.path / "wandb" and run.name.startswith("offline-run-")
    (file,) = run.rglob("front*.table.json")
    table = json.loads(file.read_text())
    best = front.pareto_points(study)
    found = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for column in ("trial_id", "step", "val_macro_avg_acc", "macs", "status", "search_s", "config/train.lr"):
        assert [row[column] for row in found] == best[column].to_numpy().tolist()
    assert not any(column.startswith("val_acc/") for column in table["columns"])
    (binary,) = run.glob("run-*.wandb")
    content = binary.read_bytes()
    assert all(name.encode() in content for name in search_summary(study, state))


def test_the_summary_has_the_results_and_the_cost(searched: tuple[Study, StudyState]) -> None:
    study, state = searched
    found = search_summary(study, state)
    assert found["hypervolume"] == front.hypervolume(study)
    assert found["best_val_macro_avg_acc"] == study.points["val_macro_avg_acc"].max()
    assert (found["trials"], found["epochs"], found["rejected"]) == (13, 3 + 12 * 10, 0)
    nothing = dataclasses.replace(study, raw=study.raw.head(0))
    assert search_summary(nothing, state) | {"hypervolume": 0.0, "front_size": 0} == search_summary(nothing, state)
    assert "best_val_macro_avg_acc" not in search_summary(nothing, state)


def test_disabled_and_broken_tracking(
    searched: tuple[Study, StudyState], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study, state = searched

    def refuse(**_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(wandb, "init", refuse)
    assert track_front(study, state, "disabled") == [] and not caplog.records
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert track_front(study, state, None) == [] and not caplog.records
    assert track_front(study, state, "offline") == []
    assert {record.name for record in caplog.records} == {tracking.__name__}
