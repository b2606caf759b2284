"""Simulation of a study without training: workers run the epochs of a `Problem`, ordered by a simulated clock.

`simulate` runs an `Arm` (a searcher with its scheduler) and returns the hypervolume as a function of trained epochs.
The simulated time of an epoch grows with its MACs, so small networks report sooner, as in a real study.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any, Protocol

from problems import Epoch, Problem, key_of


class Arm(Protocol):
    """A search method: a searcher with its scheduler.

    `ask` returns a configuration, or None if there are no more. `report` records a result and returns whether the trial
    continues. `end` records the end of a trial.
    """

    def ask(self, name: str) -> dict[str, Any] | None: ...
    def report(self, name: str, result: dict[str, Any]) -> bool: ...
    def end(self, name: str, result: dict[str, Any]) -> None: ...


@dataclass
class Trace:
    """Cost and results of one arm; hypervolumes are shares of the best possible one."""

    epochs: list[float] = field(default_factory=list)  # trained epochs at each increase of the hypervolume
    work: list[float] = field(default_factory=list)  # the same, in units of one epoch of a network at the MACs limit
    hypervolume: list[float] = field(default_factory=list)
    trials: int = 0
    stopped: int = 0
    infeasible: int = 0  # number of trials that exceed the limits at every stage
    infeasible_epochs: int = 0
    spent: int = 0  # total number of epochs
    spent_work: float = 0.0


@dataclass
class _Trial:
    name: str
    curve: list[Epoch]
    feasible: bool
    dense: str  # equal for configurations with the same dense network
    done: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)


def simulate(problem: Problem, arm: Arm, budget: int, workers: int = 4, shared: bool = False) -> Trace:
    """Simulate a study until `budget` epochs are trained.

    With `shared`, a dense epoch that another trial has trained already costs nothing.
    """
    trace, numbers = Trace(), itertools.count()
    clock: list[tuple[float, int, _Trial]] = []  # when a trial's next epoch is done
    found: list[tuple[float, float]] = []
    trained: dict[str, int] = {}

    def start_trial(now: float) -> None:
        """Start the next trial on a free worker."""
        name = f"t{trace.trials:04d}"
        values = arm.ask(name)
        if values is None:
            return
        trace.trials += 1
        dense = key_of({k: v for k, v in values.items() if not k.startswith("prune.")})
        trial = _Trial(name, problem.curve(values), problem.feasible(values), dense)
        trace.infeasible += not trial.feasible
        start_epoch(now, trial)

    def replayed(trial: _Trial) -> bool:
        return shared and trial.curve[trial.done].stage == 0 and trial.done < trained.get(trial.dense, 0)

    def start_epoch(now: float, trial: _Trial) -> None:
        seconds = 0.0 if replayed(trial) else 0.2 + trial.curve[trial.done].macs / problem.limit
        heapq.heappush(clock, (now + seconds, next(numbers), trial))

    for _ in range(workers):
        start_trial(0.0)
    while clock and trace.spent < budget:
        now, _, trial = heapq.heappop(clock)
        epoch = trial.curve[trial.done]
        if not replayed(trial):
            trace.spent += 1
            trace.infeasible_epochs += not trial.feasible
            trace.spent_work += epoch.macs / problem.limit
        trial.done += 1
        if epoch.stage == 0:
            trained[trial.dense] = max(trained.get(trial.dense, 0), trial.done)
        if epoch.ends:
            trial.points.append({"step": epoch.stage, "val_macro_avg_acc": epoch.acc, "macs": epoch.macs})
            if epoch.macs <= problem.limit:
                found.append((epoch.true, epoch.macs))
                trace.epochs.append(trace.spent)
                trace.work.append(trace.spent_work)
                trace.hypervolume.append(problem.hypervolume(found) / problem.best)
        result = _result(trial, epoch)
        if not result["done"] and arm.report(trial.name, result):
            start_epoch(now, trial)
            continue
        trace.stopped += not result["done"]
        arm.end(trial.name, result)
        start_trial(now)
    return trace


def _result(trial: _Trial, epoch: Epoch) -> dict[str, Any]:
    """Return the result of an epoch in the form that a Trainable reports."""
    done = trial.done == len(trial.curve)
    position = {"stage": epoch.stage, "epoch": epoch.epoch, "epochs": trial.done, "training_iteration": trial.done}
    figures = {"val_macro_avg_acc": epoch.acc, "macs": epoch.macs, "points": list(trial.points)}
    return {"trial": trial.name, **position, **figures, "done": done, "finished": done}
