"""Simulation of a study without training: workers run the epochs of a `Problem`, ordered by a simulated clock.

`simulate` runs an `Arm` (a search method) and returns the hypervolume as a function of the trained epochs (`Trace`).
The simulated time of an epoch grows with its MACs, so small networks report sooner, as in a real study.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any, Protocol

from problems import Epoch, Problem, key_of


class Arm(Protocol):
    """A search method: a searcher that proposes configurations, with a scheduler that stops trials early.

    `ask` returns the configuration of the new trial `name`, or None if the search space is exhausted. `report` records
    the result of an epoch and returns True if the trial continues, False if it is stopped. `end` records the last
    result of a trial that is complete or was stopped.
    """

    def ask(self, name: str) -> dict[str, Any] | None: ...
    def report(self, name: str, result: dict[str, Any]) -> bool: ...
    def end(self, name: str, result: dict[str, Any]) -> None: ...


@dataclass
class Trace:
    """Costs of a simulated study and its hypervolume over time.

    `epochs`, `work` and `hypervolume` have one value for each measured feasible point.
    """

    epochs: list[float] = field(default_factory=list)  # epochs trained so far
    work: list[float] = field(default_factory=list)  # epochs so far, weighted by MACs / limit
    hypervolume: list[float] = field(default_factory=list)  # divided by that of the best possible front
    trials: int = 0
    stopped: int = 0  # number of trials that were stopped early
    infeasible: int = 0  # number of trials whose networks all exceed the MACs limit
    infeasible_epochs: int = 0
    spent: int = 0  # total number of epochs
    spent_work: float = 0.0  # total number of epochs, weighted by MACs / limit


@dataclass
class _Trial:
    name: str
    curve: list[Epoch]
    feasible: bool
    dense: str  # equal for configurations with the same dense network
    done: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)


def simulate(problem: Problem, arm: Arm, budget: int, workers: int = 4, shared: bool = False) -> Trace:
    """Simulate a study on `workers` workers until `budget` epochs are trained, or the arm has no more configurations.

    With `shared`, a dense epoch costs nothing if another trial with the same dense network has already trained it.
    """
    trace, numbers = Trace(), itertools.count()
    clock: list[tuple[float, int, _Trial]] = []  # simulated time at which the next epoch of a trial ends
    found: list[tuple[float, float]] = []
    trained: dict[str, int] = {}

    def start_trial(now: float) -> None:
        """Start a new trial on a free worker at the simulated time `now`, unless the arm has no more configurations."""
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
    """Return the result of an epoch in the form in which a Trainable reports it."""
    done = trial.done == len(trial.curve)
    position = {"stage": epoch.stage, "epoch": epoch.epoch, "epochs": trial.done, "training_iteration": trial.done}
    figures = {"val_macro_avg_acc": epoch.acc, "macs": epoch.macs, "points": list(trial.points)}
    return {"trial": trial.name, **position, **figures, "done": done, "finished": done}
