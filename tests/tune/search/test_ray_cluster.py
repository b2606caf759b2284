"""The Ray adapter in a cluster: population based training, a killed worker, and a driver that loses its study."""

import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.tune as rt
import torch
from ray import cloudpickle
from ray._private import worker
from rich.console import Console

from tests.support import simulated
from tests.support.machines import PATIENCE_S
from tests.support.simulated import point
from tests.support.tune.ray_search import RATES, Study
from tune.ray_start import log_to_file
from tune.reporting.front import RunningFront
from tune.reporting.progress import ProgressLines
from tune.search.ray_adapter import ray_scheduler, run_tuner
from tune.study.events import Event
from tune.study.lease import StudyLost

FAILURES: dict[str, Callable[[], Any]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "full memory of PyTorch": lambda: torch.empty(2**60, dtype=torch.int8),
    "full memory of NumPy": lambda: np.empty(2**60, np.int8),
}


class Walker(rt.Trainable):
    """A Trainable that moves by its rate each epoch and reports which trials made its steps. At epoch 2, it does what
    the key `failure` says (`FAILURES`), unless its file `failed` exists."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.own, self.position, self.lineage = dict(new_config), 0.0, []
        return True

    def step(self) -> dict[str, Any]:
        self.position += self.own["train.lr"]
        self.lineage.append(self.own["trial"])
        epochs = len(self.lineage)
        if epochs == 2 and "failure" in self.own and not (failed := Path(self.own["log"]).with_name("failed")).exists():
            failed.touch()
            FAILURES[self.own["failure"]]()
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


def walk(
    study: Study,
    folder: Path,
    scheduler: str,
    n_trials: int,
    step: Callable[[list[str]], None],
    warn: Callable[[str], None] = print,
    **fixed: Any,
) -> list[Any]:
    """Train walkers with Ray; return the lines of their log. `fixed` are keys of their configuration."""
    run_tuner(
        study.session,
        Walker,
        {"log": str(folder / "log"), **fixed},
        scheduler=ray_scheduler(scheduler, RATES, 8, seed=0),
        n_trials=n_trials,
        resources={"cpu": 1, "gpu": 0},
        max_concurrent=None,
        storage=str(folder / "ray"),
        run="run001",
        step=step,
        warn=warn,
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


@pytest.fixture
def ray_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Direct Ray's log to the returned file, as tune/run.py does."""
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # restored after the test
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")  # as `start_ray` does
    logger = logging.getLogger("ray")
    handlers, logger.handlers = logger.handlers, []
    log_to_file(tmp_path / "ray.log")
    yield tmp_path / "ray.log"
    for handler in logger.handlers:
        handler.close()
    logger.handlers = handlers


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("failure", "reason", "logged"),
    [
        ("killed", "the worker process died", ("(raylet) A worker died", "ActorDiedError")),
        ("full memory of PyTorch", "out of memory: RuntimeError: ", ("can't allocate memory",)),
        ("full memory of NumPy", "out of memory: ", ("Unable to allocate 1.00 EiB",)),
    ],
)
def test_a_failure_of_a_worker_is_one_line(
    tmp_path: Path, ray_log: Path, capfd: pytest.CaptureFixture[str], failure: str, reason: str, logged: tuple[str, ...]
) -> None:
    """The line names the trial and the log, and the trial goes on. What Ray reports is in the log, not on the
    terminal."""
    study = Study(tmp_path, RATES, scheduler="fifo")
    capfd.readouterr()
    progress = ProgressLines(Console(), study.log.state, RunningFront(), 1, {}, ray_log)
    walk(study, tmp_path, "fifo", 1, lambda running: None, progress.warn, failure=failure)
    state = study.log.state.trials["t0000"]
    assert (state.outcome, state.epochs) == ("completed", 8)
    given_up, printed = time.monotonic() + PATIENCE_S, "".join(capfd.readouterr())
    first = logged[0].removeprefix("(raylet) ")
    while first not in ray_log.read_text() + printed and time.monotonic() < given_up:
        time.sleep(0.1)  # Ray's message about a killed worker comes some time after the crash
        printed += "".join(capfd.readouterr())
    assert all(text in ray_log.read_text() for text in logged)
    assert printed.count("\n") == 1 and "raylet" not in printed
    assert all(part in printed for part in ("t0000", reason, str(ray_log)))


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
