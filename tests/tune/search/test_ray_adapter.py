"""Ray's side of a search: the searcher, the stopper and the callback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search_spaces import load_space, space_from_dict
from tests.support.data.planted import bomb
from tests.support.simulated import result
from tests.support.tune.ray_search import Study, suggested, trial
from tune.search.halving import SCHEDULERS
from tune.search.ray_adapter import (
    Population,
    SessionCallback,
    SessionSearcher,
    SessionStopper,
    ray_scheduler,
)
from tune.study.lease import StudyLost


def test_a_suggestion_is_the_fixed_configuration_with_the_trials_own(tmp_path: Path) -> None:
    study = Study(tmp_path, replicates=2)
    searcher = SessionSearcher(study.session, {"seed": 3, "train.lr": 0.5}, SessionStopper(study.session))
    first, second = suggested(searcher, "ray-0"), suggested(searcher, "ray-1")
    assert (first["seed"], first["trial"], second["trial"]) == (3, "t0000", "t0000r1")
    assert first["train.lr"] == second["train.lr"] == study.log.state.trials["t0000"].values["train.lr"]
    assert "replicate" not in first and second["replicate"] == 1


def test_a_space_that_is_used_up_ends_the_suggestions(tmp_path: Path) -> None:
    space = space_from_dict({"name": "s", "parameters": {"train.lr": {"choice": [0.1, 0.2]}}})
    study = Study(tmp_path, space)
    searcher = SessionSearcher(study.session, {}, SessionStopper(study.session))
    assert sorted(suggested(searcher, f"ray-{i}")["train.lr"] for i in range(2)) == [0.1, 0.2]
    assert searcher.suggest("ray-2") == Searcher.FINISHED
    assert study.log.state.exhausted


def test_the_stopper_returns_the_sessions_decision(tmp_path: Path) -> None:
    study = Study(tmp_path)
    stopper = SessionStopper(study.session)
    names = [getattr(study.session.next_trial(), "name", "") for _ in range(2)]
    better, worse = (
        result(name, 0, 6, 6, val_macro_avg_acc=accuracy) for name, accuracy in zip(names, (0.5, 0.4), strict=True)
    )
    assert [stopper("ray-0", better), stopper("ray-1", worse)] == [False, True]
    assert study.log.state.trials[names[1]].outcome == "stopped"
    assert not stopper.stop_all()


def test_a_hopeless_study_is_stopped(tmp_path: Path) -> None:
    study = Study(tmp_path)
    stopper = SessionStopper(study.session)
    callback = SessionCallback(study.session, stopper, lambda running: None, print)
    for _ in range(3):
        assert not stopper.stop_all()
        trial_drawn = study.session.next_trial()
        assert trial_drawn
        callback.on_trial_error(0, [], trial(trial_drawn.name, Trial.ERROR))
    assert stopper.stop_all()
    assert study.session.hopeless == "unknown error"


def test_ends_that_ray_alone_knows_are_events(tmp_path: Path) -> None:
    study = Study(tmp_path)
    steps: list[list[str]] = []
    callback = SessionCallback(study.session, SessionStopper(study.session), steps.append, print)
    names = [getattr(study.session.next_trial(), "name", "") for _ in range(3)]
    failed = trial(names[0], Trial.ERROR)
    failed.error_file = str(tmp_path / "error.txt")
    Path(failed.error_file).write_text("""Traceback (most recent call last):
  File "x.py", line 1, in f
    f()
ValueError: no data

""")
    callback.on_trial_error(0, [], failed)
    callback.on_trial_complete(0, [], trial(names[1], Trial.TERMINATED))
    callback.on_step_end(0, [failed, trial(names[1], Trial.TERMINATED), trial(names[2])])
    trials = study.log.state.trials
    assert (trials[names[0]].outcome, trials[names[0]].reason) == ("crashed", "ValueError: no data")
    assert trials[names[1]].outcome == "stopped"
    assert trials[names[2]].outcome is None
    assert steps == [[names[2]]]


def test_ray_reads_no_pickled_error_of_a_trial(tmp_path: Path) -> None:
    """Ray would unpickle <study>/ray/<run>/<trial>/error.pkl for each trial that failed."""
    study = Study(tmp_path)
    callback = SessionCallback(study.session, SessionStopper(study.session), lambda running: None, print)
    storage = StorageContext(str(tmp_path), "run001", trial_dir_name="t0000")
    failed = Trial("x", stub=True, storage=storage, config={"trial": "t0000"})
    file = tmp_path / "run001" / "t0000" / "error.pkl"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bomb(tmp_path / "exploded"))
    metadata: Any = failed.run_metadata
    metadata.pickled_error_filename = file.name
    callback.on_experiment_end([failed])
    assert failed.get_pickled_error() is None
    assert not (tmp_path / "exploded").exists()
    metadata.pickled_error_filename = file.name
    failed.get_pickled_error()  # without the callback, it does run
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("where", ["suggest", "result", "end", "error", "step"])
def test_a_lost_study_ends_and_nothing_more_is_written(tmp_path: Path, where: str) -> None:
    """At whichever call the loss is noticed, events that were not written change no state."""
    study, steps = Study(tmp_path), 0

    def step(running: list[str]) -> None:
        nonlocal steps
        steps += 1
        if study.lost:
            raise StudyLost("another driver has it")

    stopper = SessionStopper(study.session)
    searcher, callback = (
        SessionSearcher(study.session, {}, stopper),
        SessionCallback(study.session, stopper, step, print),
    )
    name = suggested(searcher, "ray-0")["trial"]
    assert not stopper("ray-0", result(name, 0, 1, 1))
    before, state = list(study.events), repr(vars(study.log.state))
    study.lost = True
    actions: dict[str, Callable[[], Any]] = {
        "suggest": lambda: searcher.suggest("ray-1"),
        "result": lambda: stopper("ray-0", result(name, 0, 2, 2)),
        "end": lambda: callback.on_trial_complete(0, [], trial(name)),
        "error": lambda: callback.on_trial_error(0, [], trial(name)),
        "step": lambda: callback.on_step_end(0, [trial(name)]),
    }
    assert not stopper.stop_all()
    actions[where]()
    assert isinstance(stopper.lost, StudyLost)
    assert stopper.stop_all()
    study.lost, after = False, steps  # as if the storage accepted writes again
    for action in actions.values():
        action()
    assert searcher.suggest("ray-2") == Searcher.FINISHED
    assert stopper("ray-0", result(name, 0, 2, 2)) is True
    assert steps == after
    assert study.events == before
    assert repr(vars(study.log.state)) == state


def test_rays_snapshots_hold_nothing_of_the_study(tmp_path: Path) -> None:
    study = Study(tmp_path)
    stopper = SessionStopper(study.session)
    for part in (
        SessionSearcher(study.session, {}, stopper),
        stopper,
        SessionCallback(study.session, stopper, lambda running: None, print),
    ):
        assert len(cloudpickle.dumps(part)) < 500  # pyright: ignore[reportPrivateImportUsage]
    with pytest.raises(NotImplementedError):
        SessionSearcher(study.session, {}, stopper).restore("checkpoint")


def test_every_scheduler_has_a_part_of_rays() -> None:
    for name in SCHEDULERS:
        scheduler = ray_scheduler(name, load_space("pbt"), 8, seed=0)
        assert isinstance(scheduler, Population) == (name == "pbt")
        assert isinstance(scheduler, FIFOScheduler)  # base class of Ray's population based training
