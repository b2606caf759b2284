"""Ray's side of a search: the searcher, the stopper, the callback and population based training, also in a cluster."""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.tune as rt
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from search_spaces import Space, load_space, space_from_dict
from tests.support.simulated import Reducers, point, result
from trainables.config.schema import MUTABLE_KEYS, key_types
from tune.search.halving import SCHEDULERS, SchedulerError
from tune.search.ray_adapter import (
    Population,
    SessionCallback,
    SessionSearcher,
    SessionStopper,
    check_population,
    explored,
    ray_scheduler,
    run_tuner,
)
from tune.search.session import SearchSession
from tune.study.events import Event
from tune.study.lease import StudyLost

RATES = space_from_dict({"name": "s", "parameters": {"train.lr": {"loguniform": [0.001, 0.02]}}})


class Study:
    """A session whose log is kept in memory; `lose` makes another driver take the study over."""

    def __init__(self, folder: Path, space: Space | None = None, **options: Any):
        self.events: list[Event] = []
        self.lost = False
        options = {"space": space or load_space("kd"), "scheduler": "asha", "sampler": "random", **options}
        self.reducers = Reducers(folder, write=self._write, **options)
        self.log = self.reducers.log
        self.session: SearchSession = self.reducers.session()

    def _write(self, events: tuple[Event, ...]) -> None:
        if self.lost:
            raise StudyLost("another driver has it")
        self.events += events


def suggested(searcher: SessionSearcher, trial_id: str) -> dict[str, Any]:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return config


class RayTrial:
    """Ray's trial, as far as callbacks and population based training look at one."""

    def __init__(self, name: str, status: str, config: dict[str, Any]):
        self.config, self.status, self.trial_id = {"trial": name, **config}, status, f"id-{name}"
        self.error_file: str | None = None


def trial(name: str, status: str = Trial.RUNNING, **config: Any) -> Any:
    return RayTrial(name, status, config)


# searcher, stopper, callback


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
        result(name, 0, 4, 4, val_macro_avg_acc=accuracy) for name, accuracy in zip(names, (0.5, 0.4), strict=True)
    )
    assert [stopper("ray-0", better), stopper("ray-1", worse)] == [False, True]
    assert study.log.state.trials[names[1]].outcome == "stopped"
    assert not stopper.stop_all()


def test_a_hopeless_study_is_stopped(tmp_path: Path) -> None:
    study = Study(tmp_path)
    stopper = SessionStopper(study.session)
    callback = SessionCallback(study.session, stopper, lambda running: None)
    for _ in range(3):
        assert not stopper.stop_all()
        drawn = study.session.next_trial()
        assert drawn
        callback.on_trial_error(0, [], trial(drawn.name, Trial.ERROR))
    assert stopper.stop_all()
    assert study.session.hopeless == "unknown error"


def test_ends_that_ray_alone_knows_are_events(tmp_path: Path) -> None:
    study = Study(tmp_path)
    steps: list[list[str]] = []
    callback = SessionCallback(study.session, SessionStopper(study.session), steps.append)
    names = [getattr(study.session.next_trial(), "name", "") for _ in range(3)]
    failed = trial(names[0], Trial.ERROR)
    failed.error_file = str(tmp_path / "error.txt")
    Path(failed.error_file).write_text("Traceback (most recent call last):\n  ...\nRayActorError: the node died\n\n")
    callback.on_trial_error(0, [], failed)
    callback.on_trial_complete(0, [], trial(names[1], Trial.TERMINATED))
    callback.on_step_end(0, [failed, trial(names[1], Trial.TERMINATED), trial(names[2])])
    trials = study.log.state.trials
    assert (trials[names[0]].outcome, trials[names[0]].reason) == ("crashed", "RayActorError: the node died")
    assert trials[names[1]].outcome == "stopped"
    assert trials[names[2]].outcome is None
    assert steps == [[names[2]]]


@pytest.mark.parametrize("where", ["suggest", "result", "end", "error", "step"])
def test_a_lost_study_ends_and_nothing_more_is_written(tmp_path: Path, where: str) -> None:
    """Wherever the loss is noticed; no state is changed by what was not written."""
    study, steps = Study(tmp_path), 0

    def step(running: list[str]) -> None:
        nonlocal steps
        steps += 1
        if study.lost:
            raise StudyLost("another driver has it")

    stopper = SessionStopper(study.session)
    searcher, callback = SessionSearcher(study.session, {}, stopper), SessionCallback(study.session, stopper, step)
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
    study.lost, after = False, steps  # as if the storage let it write again
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
        SessionCallback(study.session, stopper, lambda running: None),
    ):
        assert len(cloudpickle.dumps(part)) < 500  # pyright: ignore[reportPrivateImportUsage]
    with pytest.raises(NotImplementedError):
        SessionSearcher(study.session, {}, stopper).restore("checkpoint")


# population based training


def test_every_scheduler_has_a_part_of_rays() -> None:
    for name in SCHEDULERS:
        made = ray_scheduler(name, load_space("pbt"), 8, seed=0)
        assert isinstance(made, Population) == (name == "pbt")
        assert isinstance(made, FIFOScheduler)  # which Ray's population based training is a kind of


def test_pbt_refuses_a_space_with_more_than_one_network() -> None:
    check_population(load_space("pbt"))
    for make in (check_population, lambda space: Population(space, 8, 0)):
        with pytest.raises(SchedulerError) as error:
            make(load_space("kd_prune"))
        for key in ("kd_prune", "prune.ratios", "student.base_channels", "student.branches", *MUTABLE_KEYS):
            assert key in str(error.value)


def test_mutable_keys_are_of_the_configuration() -> None:
    assert set(MUTABLE_KEYS) <= set(key_types())
    assert set(load_space("pbt").parameters) <= set(MUTABLE_KEYS)


MIXED = space_from_dict(
    {
        "name": "s",
        "parameters": {"train.lr": {"loguniform": [0.001, 0.02]}, "augment.mixup_alpha": {"choice": [0.0, 0.2, 0.4]}},
    }
)
MINE = {"study_dir": "a", "seed": 1, "replicate": 0, "train.lr": 0.002, "augment.mixup_alpha": 0.0}
OTHER = MINE | {"replicate": 1, "train.lr": 0.019, "augment.mixup_alpha": 0.4}


def at_epoch(population: Population, name: str, epoch: int, **config: Any) -> Any:
    """A trial that population based training has seen at an epoch."""
    made = trial(name, **config)
    population._trial_state[made] = SimpleNamespace(last_train_time=epoch, last_score=0.5, last_checkpoint=None)  # type: ignore[assignment]
    return made


def new_configs(seed: int, name: str = "t0000", epochs: range = range(1, 40)) -> list[dict[str, Any]]:
    """What a trial takes over at several epochs."""
    found = []
    for epoch in epochs:
        population = Population(MIXED, dense_epochs=8, seed=seed)
        mine, other = at_epoch(population, name, epoch, **MINE), at_epoch(population, "t0001", epoch, **OTHER)
        found.append(population._get_new_config(mine, other)[0])
    return found


def test_pbt_keeps_names_and_ranges() -> None:
    configs = new_configs(0)
    for config in configs:
        assert (config["trial"], config["study_dir"], config["replicate"]) == ("t0000", "a", 0)
        assert 0.001 <= config["train.lr"] <= 0.02
        assert config["augment.mixup_alpha"] in (0.0, 0.2, 0.4)
    assert len({config["train.lr"] for config in configs}) > 3
    assert {config["augment.mixup_alpha"] for config in configs} == {0.0, 0.2, 0.4}


def test_pbt_draws_are_a_function_of_seed_trial_and_epoch() -> None:
    """And of nothing else: neither Python's nor NumPy's global generator, nor how often something was drawn."""
    random.seed(1)
    np.random.seed(1)
    first = new_configs(0)
    random.seed(2)
    np.random.seed(2)
    state = random.getstate()
    assert new_configs(0) == first
    assert random.getstate() == state
    assert new_configs(1) != first
    others = [config | {"trial": "t0000"} for config in new_configs(0, "t0002")]
    assert others != first
    assert len({json.dumps(config) for config in first}) > 10, "epochs differ"
    population = Population(MIXED, dense_epochs=8, seed=0)
    mine, other = at_epoch(population, "t0000", 7, **MINE), at_epoch(population, "t0001", 7, **OTHER)
    again = [population._get_new_config(mine, other)[0] for _ in range(3)]
    assert again == [first[6]] * 3


def test_the_donor_is_drawn_from_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of Ray's trials and the state of Python's global generator."""
    donors: list[str] = []
    monkeypatch.setattr(
        Population, "_exploit", lambda self, controller, own, donor: donors.append(donor.config["trial"])
    )
    for global_seed in (1, 2):
        random.seed(global_seed)
        for epoch in range(1, 25):
            population = Population(RATES, dense_epochs=8, seed=0)
            best = [at_epoch(population, f"t000{i}", epoch, **MINE) for i in range(4)]
            for donor in best:
                population._trial_state[donor].last_checkpoint = object()  # type: ignore[assignment]
            worst = at_epoch(population, "t0009", epoch, **MINE)
            random.shuffle(best)
            population._checkpoint_or_exploit(worst, None, best, [worst])  # type: ignore[arg-type]
    assert len(donors) == 2 * 24
    assert donors[:24] == donors[24:]
    assert len(set(donors)) == 4


@pytest.mark.parametrize("spec", [{"uniform": [0.1, 0.9]}, {"loguniform": [0.001, 0.02]}, {"choice": [0.0, 0.2, 0.4]}])
def test_explored_values(spec: dict[str, Any]) -> None:
    """A quarter are fresh draws from the whole range, the others 0.8 or 1.2 times the old value, or its neighbours."""
    old = 0.2 if "choice" in spec else spec[next(iter(spec))][0] * 1.5
    low, high = min(spec[next(iter(spec))]), max(spec[next(iter(spec))])
    values = [explored(spec, old, np.random.default_rng(i)) for i in range(400)]
    assert all(low <= value <= high for value in values)
    if "choice" in spec:
        assert Counter(values)[0.2] == pytest.approx(400 / 12, rel=0.5)
    else:
        near = [value for value in values if value in (pytest.approx(old * 0.8), pytest.approx(old * 1.2))]
        assert len(near) == pytest.approx(300, rel=0.1)
        assert len(set(values)) > 50


class Walker(rt.Trainable):
    """Moves up by its rate each epoch; reports whose steps it has taken."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.own, self.position, self.lineage = dict(new_config), 0.0, []
        return True

    def step(self) -> dict[str, Any]:
        self.position += self.own["train.lr"]
        self.lineage.append(self.own["trial"])
        epochs = len(self.lineage)
        with Path(self.own["log"]).open("a") as log:
            log.write(json.dumps([self.own["trial"], epochs, self.own["train.lr"], self.lineage]) + "\n")
        done = epochs == 8
        points = [point(0, self.position, 1e6)] if done else []
        position = {"stage": 0, "epoch": epochs, "epochs": epochs, "done": done, "finished": done}
        return {"val_macro_avg_acc": self.position, "macs": 1.0, "points": points, **position}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps([self.position, self.lineage]))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.position, self.lineage = json.loads((Path(checkpoint) / "state.json").read_text())


@pytest.fixture(scope="module")
def cluster():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    cloudpickle.register_pickle_by_value(sys.modules["simulated"])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # two trials at a time, the others wait
    yield
    ray.shutdown()


def walk(study: Study, folder: Path, scheduler: str, n_trials: int, step: Callable[[list[str]], None]) -> list[Any]:
    """Train walkers with Ray; the lines of their log."""
    run_tuner(
        study.session,
        Walker,
        {"log": str(folder / "log")},
        scheduler=ray_scheduler(scheduler, RATES, 8, seed=0),
        n_trials=n_trials,
        resources={"cpu": 1, "gpu": 0},
        max_concurrent=None,
        storage=str(folder / "ray"),
        run="run001",
        step=step,
    )
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pbt_in_a_cluster(tmp_path: Path) -> None:
    """Weights move from better to worse trials in the dense phase; each trial keeps its name and its place."""
    study = Study(tmp_path, RATES, scheduler="pbt")
    running: set[str] = set()
    lines = walk(study, tmp_path, "pbt", 4, running.update)
    ends = {name: (rate, lineage) for name, epochs, rate, lineage in lines if epochs == 8}
    assert sorted(ends) == ["t0000", "t0001", "t0002", "t0003"] == sorted(running)
    assert all(lineage[-1] == name for name, (_, lineage) in ends.items())
    assert any(len(set(lineage)) > 1 for _, lineage in ends.values())  # someone took over another's steps
    # an epoch is trained twice at most, to take over one behind
    assert max(Counter(name for name, *_ in lines).values()) < 2 * 8
    assert all(0.001 <= rate <= 0.02 for rate, _ in ends.values())
    for name, state in study.log.state.trials.items():
        assert (state.outcome, state.epochs, len(state.points)) == ("completed", 8, 1)
        assert state.values["train.lr"] == ends[name][0]
    assert any(event.kind == "configuration_changed" for event in study.events)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("after", ["trial_created", "epoch_reported"])
def test_a_driver_in_a_cluster_stops_when_its_study_is_lost(tmp_path: Path, after: str) -> None:
    """At a draw or at a result; StudyLost reaches the driver as it is."""
    study = Study(tmp_path, RATES, scheduler="fifo")
    write = study._write

    def lose(events: tuple[Event, ...]) -> None:
        kinds = [event.kind for event in study.events]
        study.lost = study.lost or (kinds.count(after) >= 3 and events[0].kind == after)
        write(events)

    study.log._write = lose
    with pytest.raises(StudyLost):
        walk(study, tmp_path, "fifo", 30, lambda running: None)
    kinds = [event.kind for event in study.events]
    assert kinds.count(after) == 3
    assert kinds.count("trial_ended") < 30
