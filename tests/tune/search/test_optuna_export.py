"""The export as an Optuna study: every sample with its outcome, also after the space was edited."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Optunas

from analysis.results import load_study
from search_spaces import Space, load_space, space_from_dict
from tests.support.example_study import write_study
from tests.support.simulated import RandomStudy, point
from tune.reporting.optuna_export import OptunaExport, export_optuna
from tune.reporting.tables import rebuild_tables
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import (
    DriverStarted,
    EpochReported,
    Event,
    PointMeasured,
    SampleRejected,
    TrialCreated,
    TrialEnded,
)
from tune.study.state import StudyState
from tune.study.writer import Journal

PARAMS = {"train.lr": 0.01, "distill.kd_alpha": 0.875, "distill.kd_temp": 2.0, "student.base_channels": 16}
OUTCOMES = {
    "t0000": ("completed", Optunas.COMPLETE),
    "t0001": ("stopped", Optunas.PRUNED),
    "t0002": ("failed", Optunas.FAIL),
    "t0003": ("crashed", Optunas.FAIL),
    "t0004": (None, Optunas.RUNNING),
}


def narrowed(**parameters: Any) -> Space:
    """Return space kd with other ranges; None removes a parameter."""
    space = load_space("kd").as_dict()
    space["parameters"] = {k: v for k, v in (space["parameters"] | parameters).items() if v is not None}
    return space_from_dict(space)


def events() -> list[Event]:
    found: list[Event] = [
        DriverStarted(command="python tune/run.py"),
        SampleRejected(params=PARAMS | {"student.base_channels": 32}, reason="too wide", example="{}", excess=0.5),
    ]
    for i, (name, (outcome, _)) in enumerate(OUTCOMES.items()):
        params = PARAMS | {"distill.kd_alpha": 0.25 * i}
        found += [
            TrialCreated(trial=name, config_id=name, replicate=0, params=params, values=params),
            EpochReported(trial=name, stage=0, epoch=1, epochs=1, figures={}),
            PointMeasured(trial=name, point=point(0, 0.5 + i / 100, 2e6)),
        ]
        if outcome:
            found.append(TrialEnded(trial=name, outcome=outcome, reason="why" if outcome == "failed" else None))  # type: ignore[arg-type]
    return found


def exported(folder: Path, space: Space) -> list[FrozenTrial]:
    """Return the Optuna trials, read from the exported file, of a study with these events and the edited `space`."""
    write_study(folder / "x", space=space.as_dict(), name="x")
    Journal(folder / "x", None).append(tuple(events()))
    rebuild_tables(folder / "x", {})
    target = folder / "export.log"
    assert export_optuna(load_study(folder / "x"), target) == 6
    assert export_optuna(load_study(folder / "x"), target) == 6  # replaced, not appended
    storage = JournalStorage(JournalFileBackend(str(target)))
    return optuna.load_study(study_name="x", storage=storage).get_trials()


def test_every_draw_with_its_outcome(tmp_path: Path) -> None:
    rejected, *trials = exported(tmp_path, load_space("kd"))
    assert (rejected.state, rejected.values) == (Optunas.PRUNED, None)
    assert rejected.user_attrs["reason"] == "too wide"
    assert [t.state for t in trials] == [state for _, state in OUTCOMES.values()]
    assert [t.user_attrs["trial"] for t in trials] == list(OUTCOMES)
    assert [t.user_attrs["status"] for t in trials] == ["complete", "stopped early", "failed", "crashed", "running"]
    assert [t.values for t in trials] == [[0.5, 2e6], *[None] * 4]
    assert all(t.params == PARAMS | {"distill.kd_alpha": 0.25 * i} for i, t in enumerate(trials))
    assert all(t.user_attrs["points"][0]["macs"] == 2e6 for t in trials)
    assert trials[2].user_attrs["reason"] == "why"
    assert [t.datetime_complete is None for t in trials] == [False] * 4 + [True]
    assert not any("params" in t.user_attrs for t in trials)


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({"distill.kd_alpha": {"uniform": [0.3, 0.8]}}, [2, 3]),
        ({"distill.kd_temp": None}, []),
        ({"train.weight_decay": {"uniform": [0.0, 0.1]}}, []),
        ({"student.base_channels": {"choice": [16, 24]}}, []),
    ],
)
def test_parameters_that_an_edited_space_does_not_hold(tmp_path: Path, change: dict[str, Any], held: list[int]) -> None:
    """Such parameters are kept as user attributes; outcomes and figures do not change."""
    rejected, *trials = exported(tmp_path, narrowed(**change))
    for i, t in enumerate(trials):
        params = PARAMS | {"distill.kd_alpha": 0.25 * i}
        assert (t.params, t.user_attrs.get("params")) == ((params, None) if i in held else ({}, params))
    assert [t.state for t in trials] == [state for _, state in OUTCOMES.values()]
    assert trials[0].values == [0.5, 2e6]
    assert rejected.user_attrs["params"] == PARAMS | {"student.base_channels": 32}


def test_an_exported_study_can_be_continued_by_optuna(tmp_path: Path) -> None:
    exported(tmp_path, load_space("kd"))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "export.log")))
    study = optuna.load_study(study_name="x", storage=storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == list(OBJECTIVES)
    assert load_space("kd").sample(study.ask()).keys() == PARAMS.keys()


@pytest.mark.parametrize("seed", range(4))
def test_any_study_can_be_exported_in_any_edited_space(tmp_path: Path, seed: int) -> None:
    study = RandomStudy(tmp_path, seed)
    study.run(150)
    space = load_space("kd_prune").as_dict()
    space["parameters"]["train.lr"] = {"loguniform": [0.002, 0.01]}
    space["auxiliary"]["prune.steps"] = {"int": [1, 2]}
    state = StudyState()
    export = OptunaExport(space_from_dict(space), list(OBJECTIVES), state)
    for event in study.events:
        state.apply(event)
        export.apply(event)
    trials = export.trials()
    assert len(trials) == len(state.trials) + state.rejected.total()
    assert {bool(t.params) for t in trials} == {True, False}
    optuna.create_study(directions=["maximize", "minimize"]).add_trials(trials)
