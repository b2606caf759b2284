"""The Ray adapter in a cluster: population based training, and a driver that loses its study."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.tune as rt
from ray import cloudpickle

from tests.support import simulated
from tests.support.simulated import point
from tests.support.tune.ray_search import RATES, Study
from tune.search.ray_adapter import ray_scheduler, run_tuner
from tune.study.events import Event
from tune.study.lease import StudyLost


class Walker(rt.Trainable):
    """A Trainable that moves by its rate each epoch and reports which trials made its steps."""

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
    for module in (sys.modules[__name__], simulated):  # the workers cannot import modules of tests
        cloudpickle.register_pickle_by_value(module)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # two trials at a time, the others wait
    yield
    ray.shutdown()


def walk(study: Study, folder: Path, scheduler: str, n_trials: int, step: Callable[[list[str]], None]) -> list[Any]:
    """Train walkers with Ray; return the lines of their log."""
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
        warn=print,
    )
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_pbt_in_a_cluster(tmp_path: Path) -> None:
    """Weights are copied from better to worse trials in the dense phase; each trial keeps its name and folder."""
    study = Study(tmp_path, RATES, scheduler="pbt")
    running: set[str] = set()
    lines = walk(study, tmp_path, "pbt", 4, running.update)
    ends = {name: (rate, lineage) for name, epochs, rate, lineage in lines if epochs == 8}
    assert sorted(ends) == ["t0000", "t0001", "t0002", "t0003"] == sorted(running)
    assert all(lineage[-1] == name for name, (_, lineage) in ends.items())
    assert any(len(set(lineage)) > 1 for _, lineage in ends.values())  # some trial took over another's weights
    # taking over a trial that is behind repeats at most one epoch
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
    """The loss is noticed at a sample or at a result; the driver receives StudyLost unchanged."""
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
