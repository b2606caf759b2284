"""Simulated studies for tests and benchmarks: real session, sampler, rungs and events, but no training and no Ray."""

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from search_spaces import Space, load_space
from tune.reporting.csv_texts import points_text, trials_text
from tune.reporting.front import RunningFront
from tune.reporting.optuna_export import OptunaExport
from tune.reporting.tables import StudyTables
from tune.search.feasibility import Gate, Verdict
from tune.search.halving import build_rungs
from tune.search.optuna_study import OBJECTIVES
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.events import DriverStarted, Event, TrialCreated, TrialRetried
from tune.study.log import StudyLog
from tune.study.retry import Retry


def plain_gate(values: dict[str, Any]) -> Verdict:
    """Return the verdict of a simple feasibility check: more than 24 base channels exceed the limits."""
    wide = values.get("student.base_channels", 0) > 24
    key = json.dumps(values, sort_keys=True)
    return Verdict(key, 0.5 if wide else -0.5, "too wide" if wide else "", key if wide else "")


def point(step: int, accuracy: float, macs: float, feasible: bool = True) -> dict[str, Any]:
    shares = {"class_acc": {"bus": accuracy}, "device_acc": {"a": accuracy}, "group_acc": {"real": accuracy}}
    return {
        **{"step": step, "val_macro_avg_acc": accuracy, "val_loss": 1.0, "macs": int(macs), "params": int(macs / 400)},
        **{"feasible": feasible, "checkpoint": f"step{step}", "confusion": [[1]], "widths": {"stem": [8]}, **shares},
    }


def result(trial: str, stage: int, epoch: int, epochs: int, **more: Any) -> dict[str, Any]:
    """Return the result of one epoch in the form in which a Trainable reports it; `more` replaces or adds keys."""
    figures = {"val_macro_avg_acc": 0.5, "macs": 1e6, "train_loss": 1.0, "val_loss": 1.0, "points": []}
    position = {"stage": stage, "epoch": epoch, "epochs": epochs, "done": False, "finished": False}
    return {"config": {"trial": trial}, **figures, **position, **more}


class Reducers:
    """All reducers of a study (sampler, rungs, front, tables, Optuna export), attached to one log."""

    def __init__(
        self,
        folder: Path,
        space: Space | None = None,
        gate: Gate = plain_gate,
        write: Any = lambda events: None,
        scheduler: str = "mo_asha",
        dense_epochs: int = 8,
        **options: Any,
    ):
        self.space = space or load_space("kd_prune")
        self.log = StudyLog(write)
        self.sampler = FeasibleSampler(self.space, gate, **options)
        self.rungs = build_rungs(scheduler, dense_epochs)
        self.front = RunningFront()
        self.tables = StudyTables(folder, self.log.state, {}, Retry(lambda message: None))
        self.export = OptunaExport(self.space, list(OBJECTIVES), self.log.state)
        own = (self.sampler, self.front, self.tables, self.export, *([self.rungs] if self.rungs else []))
        self.log.attach(*own)
        self.scheduler = scheduler

    def session(self) -> SearchSession:
        return SearchSession(self.log, self.sampler, self.rungs, self.scheduler)

    def digest(self) -> str:
        """Return the state of all reducers as text; equal texts mean equal states."""
        tables = {name: [t.events, t.curve, t.points] for name, t in self.tables._trials.items()}
        exported = [[t.state.name, t.params, t.values, t.user_attrs] for t in self.export.trials()]
        known = [repr(vars(self.log.state)), self.sampler.digest(), self.front.values, tables, exported]
        known.append(self.rungs.digest() if self.rungs else None)
        return json.dumps([*known, points_text(self.log.state), trials_text(self.log.state, {})])


class RandomStudy:
    """A study with random events: trials are completed, fail, crash and are restored; drivers are killed and resumed.

    `events` is the journal of the study.
    """

    def __init__(self, folder: Path, seed: int, **options: Any):
        self.rng, self.folder = random.Random(seed), folder
        self.options = {"seed": seed, "replicates": self.rng.choice([1, 1, 2, 3]), **options}
        self.options.setdefault("scheduler", self.rng.choice(["mo_asha", "asha", "fifo"]))
        self.events: list[Event] = []
        self._start()

    def _start(self) -> None:
        """Start a new driver as tune/run.py does: replay the journal, retry crashed trials, start a session."""
        self.reducers = Reducers(self.folder, write=self.events.extend, sampler="random", **self.options)
        log = self.reducers.log
        log.replay(list(self.events))
        log.add(DriverStarted(command="simulated"))
        log.add(*(TrialRetried(trial=trial.name) for trial in log.state.crashed))
        self.reducers.sampler.complete_replicates(log)
        self.reducers.sampler.settle(log)
        if self.rng.random() < 0.3:
            self._confirm()
        self.session = self.reducers.session()
        self.running: dict[str, dict[str, Any]] = {}

    def _confirm(self) -> None:
        ended = [t for t in self.reducers.log.state.trials.values() if t.outcome == "completed" and not t.replicate]
        for trial in ended[:1]:
            name = f"{trial.name}r{self.options['replicates'] + 5}"
            if name not in self.reducers.log.state.trials:
                shared = {"config_id": trial.name, "params": trial.params, "values": trial.values, "key": trial.key}
                self.reducers.log.add(TrialCreated(trial=name, replicate=9, confirms=True, **shared))

    def step(self) -> None:
        """Do one random thing: replace the driver, start a trial, or train an epoch of a running trial."""
        chance = self.rng.random()
        if chance < 0.05:
            self._start()
        elif chance < 0.25 or not self.running:
            trial = self.session.next_trial()
            if trial:
                stages = len(trial.values.get("prune.ratios", ())) + 1
                epochs = trial.epochs if self.rng.random() < 0.8 else max(0, trial.epochs - 2)
                self.running[trial.name] = {"epochs": epochs, "stages": stages, "points": list(trial.points)}
                if epochs:
                    self.running[trial.name]["restored"] = epochs
        else:
            self._train(self.rng.choice(list(self.running)))

    def _train(self, name: str) -> None:
        state, rng = self.running[name], self.rng
        if rng.random() < 0.05:
            self.session.crashed(name, "the node died")
            del self.running[name]
            return
        state["epochs"] += 1
        epochs = state["epochs"]
        stage, epoch = (0, epochs) if epochs <= 8 else divmod(epochs - 8 - 1, 2)
        stage, epoch = (0, epochs) if epochs <= 8 else (stage + 1, epoch + 1)
        more: dict[str, Any] = {"val_macro_avg_acc": rng.random(), "macs": rng.uniform(1e5, 9e6)}
        if epochs in (8, 10, 12, 14, 16) and all(p["step"] != stage for p in state["points"]):
            state["points"].append(point(stage, more["val_macro_avg_acc"], more["macs"], rng.random() < 0.9))
        if (restored := state.pop("restored", None)) is not None:
            more["restored_epochs"] = restored
        done = epochs >= 8 + 2 * (state["stages"] - 1)
        if rng.random() < 0.04:
            more |= {"done": True, "failure": f"stage {stage}, epoch {epoch}: the loss is nan"}
        else:
            more |= {"done": done, "finished": done}
        if self.session.report(name, result(name, stage, epoch, epochs, points=list(state["points"]), **more)):
            del self.running[name]

    def run(self, n_events: int) -> Iterable[Event]:
        while len(self.events) < n_events:
            self.step()
        return self.events


def fill(filler: Path) -> None:
    """Write the file `filler` until its disk is full."""
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 1024)
