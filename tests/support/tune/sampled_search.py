"""A sampler with a study around it, and a driver that reports results to it."""

import json
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Optunas

from search_spaces import Space, load_space, space_from_dict
from tests.support.simulated import plain_gate, point, result
from tune.search.feasibility import Gate, Verdict
from tune.search.sampler import FeasibleSampler
from tune.search.session import SearchSession
from tune.study.events import (
    DriverStarted,
    Event,
    TrialRetried,
)
from tune.study.log import StudyLog
from tune.study.state import TrialState


def any_gate(values: dict[str, Any]) -> Verdict:
    return Verdict(json.dumps(values), -1.0)


class Search:
    """The search of one driver without early stopping; it replays `events`, then adds its own."""

    def __init__(
        self, space: Space | None = None, gate: Gate = plain_gate, events: list[Event] | None = None, **options
    ):
        self.events = [] if events is None else events
        self.log = StudyLog(self.events.extend)
        self.sampler = FeasibleSampler(space or load_space("kd_prune"), gate, **options)
        self.log.attach(self.sampler)
        self.log.replay(list(self.events))
        self.log.add(DriverStarted(command="test"))

    def begin(self) -> "Search":
        """Do what a driver does before it trains: retry crashed trials, add missing replicates."""
        self.log.add(*(TrialRetried(trial=trial.name) for trial in self.log.state.crashed))
        self.sampler.complete_replicates(self.log)
        self.sampler.settle(self.log)
        return self

    @property
    def session(self) -> SearchSession:
        if not hasattr(self, "_session"):
            self._session = SearchSession(self.log, self.sampler, None, "fifo")
        return self._session

    def next(self) -> TrialState:
        trial = self.session.next_trial()
        assert trial is not None
        return trial

    def end(self, name: str, points: list[dict[str, Any]], finished: bool = True, **more: Any) -> None:
        """Report the last epoch of a trial."""
        epochs = self.log.state.trials[name].epochs + 1
        self.session.report(name, result(name, 0, epochs, epochs, points=points, done=True, finished=finished, **more))

    def optuna_trials(self, *states: Optunas) -> list[FrozenTrial]:
        """Return Optuna's trials in one of the given states, or all trials if none is given."""
        return [t for t in self.sampler.study.get_trials(deepcopy=False) if not states or t.state in states]


def points(n: int, accuracy: float = 0.6) -> list[dict[str, Any]]:
    """Return the points of a dense network and n - 1 prune steps, each with half the MACs of the one before."""
    return [point(k, accuracy - k / 100, 8e6 / 2**k) for k in range(n)]


def one(accuracy: float) -> list[dict[str, Any]]:
    return [point(0, accuracy, 2e6)]


def drive(search: Search, n: int, leave: int | None = None) -> list[dict[str, Any]]:
    """Draw and end `n` trials, every third by early stopping, and return their values; trial `leave` stays running."""
    trial_values = []
    for _ in range(n):
        trial = search.next()
        trial_values.append({"trial": trial.name} | trial.values)
        number = int(trial.name[1:])
        if number != leave:
            finished = number % 3 > 0
            n_points = len(trial.values["prune.ratios"]) + 1 if finished else 1
            search.end(trial.name, points(n_points, 0.3 + trial.values["distill.kd_alpha"] / 2), finished)
    return trial_values


# an edited space
def edited(**parameters: Any) -> Space:
    """Return space kd_prune with other ranges; None removes a parameter."""
    space = load_space("kd_prune").as_dict()
    space["parameters"] = {k: v for k, v in (space["parameters"] | parameters).items() if v is not None}
    return space_from_dict(space)
