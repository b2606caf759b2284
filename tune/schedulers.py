"""Early stopping: asynchronous successive halving, on one objective or several.

    build_scheduler("mo_asha", dense_epochs=8, space=space, events=journal.earlier)

`asha` ranks a rung by validation accuracy (Li et al. 2020). `mo_asha` ranks it by non-dominated sorting of accuracy
and MACs, ties broken by crowding distance (Schmucker et al. 2021), so that a small network is measured against small
ones; it has rungs after each prune step, too. What a resume needs of the rungs comes from the study's journal.
Population based training is in tune/population.py.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from analysis.front import nondominated_rank
from search_spaces import Space
from tune.population import Population, SchedulerError
from tune.search import OBJECTIVES

SCHEDULERS = {
    "mo_asha": "stops what is behind in accuracy for its MACs",
    "asha": "stops what is behind in accuracy",
    "fifo": "stops nothing",
    "pbt": "one network: trials take over the weights and rates of better ones",
}
Rung = tuple[str, int]  # ("dense", epoch), or ("step", k): the network retrained after prune step k
Values = tuple[float, ...]


def build_scheduler(
    name: str, dense_epochs: int, space: Space, events: Iterable[dict[str, Any]] = ()
) -> TrialScheduler:
    """The scheduler called `name`; `events` are those of the study's journal so far."""
    if name not in SCHEDULERS:
        raise SchedulerError(f"unknown scheduler {name!r}: choose from {', '.join(SCHEDULERS)}")
    if name == "fifo":
        return FIFOScheduler()
    if name == "pbt":
        return Population(space, dense_epochs)
    # from an eighth of the dense epochs, but not before the fourth, to the half: later there is little to save
    epochs = milestones(max(4, dense_epochs // 8), dense_epochs // 2, 2.0)
    if name == "asha":  # a pruned network's accuracy alone says little: it was to be less
        return SuccessiveHalving({"val_macro_avg_acc": "max"}, epochs, events=events)
    return SuccessiveHalving(OBJECTIVES, epochs, after_steps=True, events=events)


class SuccessiveHalving(FIFOScheduler):
    """Stops a trial that is not among the best 1/`factor` of those that reached the same rung.

    Rungs lie at `epochs` of the dense phase and, with `after_steps`, after the retraining of each prune step. The
    first result at a rung counts, also that of a trial that ends there. Only the first trial of a configuration is
    ranked: its replicates share its fate, since a mean over the lucky ones of several seeds is too high. Decisions
    follow from the order of the results alone.
    """

    def __init__(
        self,
        objectives: dict[str, str],
        epochs: Sequence[int],
        factor: float = 2.0,
        after_steps: bool = False,
        events: Iterable[dict[str, Any]] = (),
    ):
        super().__init__()
        self.objectives, self.epochs, self.factor, self.after_steps = objectives, frozenset(epochs), factor, after_steps
        self.rungs: dict[Rung, dict[str, Values]] = {("dense", epoch): {} for epoch in epochs}
        self.stopped: set[str] = set()  # trials that are not to go on
        self._rebuild(events)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        keep = self.record(trial.config["trial"], result)
        return TrialScheduler.CONTINUE if keep else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._enter(trial.config["trial"], result)

    def record(self, name: str, result: dict[str, Any]) -> bool:
        """Enter a result into the rung it reached, if any; whether the trial may go on."""
        reached = self._enter(name, result)
        if reached and not result.get("done") and not self._keeps(self.rungs[reached], name):
            self.stopped.add(name)
        return configuration(name) not in self.stopped

    def _rebuild(self, events: Iterable[dict[str, Any]]) -> None:
        """Enter the results of earlier drivers. One that was killed between a result and its decision is made up for:
        the decision of a running trial's last result is taken again, from what the rung held then."""
        last: dict[str, Rung | None] = {}  # of each trial that has not ended
        for event in events:
            if event["event"] == "result":
                if event["done"] and not event["finished"] and not event.get("failure"):
                    self.stopped.add(event["trial"])
                last[event["trial"]] = self._enter(event["trial"], event)
            if event["event"] == "end" or event.get("done"):
                last.pop(event["trial"], None)
        for name, reached in last.items():
            if reached:
                rung = list(self.rungs[reached].items())
                position = next(i for i, (other, _) in enumerate(rung) if other == name)
                if not self._keeps(dict(rung[: position + 1]), name):
                    self.stopped.add(name)

    def _enter(self, name: str, result: dict[str, Any]) -> Rung | None:
        """The rung that a result is the first of its trial to reach."""
        reached = self._rung_of(result)
        figures = (result.get(objective) for objective in self.objectives)  # none where the first epoch failed
        values = tuple(float("nan" if figure is None else figure) for figure in figures)
        if reached is None or name != configuration(name) or result.get("failure") or not np.isfinite(values).all():
            return None
        rung = self.rungs.setdefault(reached, {})
        if name in rung:  # repeated by a resume
            return None
        rung[name] = values
        return reached

    def _rung_of(self, result: dict[str, Any]) -> Rung | None:
        stage = result.get("stage", 0)
        if stage == 0:
            return ("dense", result["epochs"]) if result.get("epochs") in self.epochs else None
        # a result of Ray's has all points so far, an event of the journal the one that it ends a stage with
        points: list[Any] = result.get("points") or [result.get("point")]
        return ("step", stage) if self.after_steps and points[-1] and points[-1]["step"] == stage else None

    def _keeps(self, rung: dict[str, Values], name: str) -> bool:
        """Whether `name` is among the best 1/factor, by rank, and within a rank by how little crowded it is.

        What no other dominates goes on in any case: with several objectives a rung may hold nothing else. Stopping half
        of that, too, cost 0.025 +- 0.012 of the final hypervolume on tests/bench/data/curves.csv.gz (300 epochs, 20
        seeds), and a rung at the end of the dense phase 0.053 +- 0.015.
        """
        others = [values for other, values in rung.items() if other != name]
        values = np.array([*others, rung[name]])  # the trial in question is the last row
        rank = nondominated_rank(values, list(self.objectives.values()))
        if rank[-1] == 0:
            return True
        crowding = crowding_distance(values[rank == rank[-1]])
        # of equally crowded ones the first to come goes before
        better = int((rank < rank[-1]).sum()) + int((crowding[:-1] >= crowding[-1]).sum())
        return better < np.ceil(len(values) / self.factor)

    def debug_string(self) -> str:
        return " | ".join(f"{kind} {k}: {len(rung)} trials" for (kind, k), rung in self.rungs.items())


def rungs_digest(scheduler: TrialScheduler) -> str | None:
    """A hash of which trial reached which rung with what; None without rungs. Equal digests, equal rungs."""
    if not isinstance(scheduler, SuccessiveHalving):
        return None
    rungs = sorted((str(rung), sorted(held.items())) for rung, held in scheduler.rungs.items())
    return hashlib.sha256(json.dumps(rungs).encode()).hexdigest()[:16]


def milestones(first: int, last: int, factor: float) -> list[int]:
    """Epochs first, first * factor, ... up to `last`."""
    found, epoch = [], float(first)
    while round(epoch) <= last:
        found.append(round(epoch))
        epoch *= factor
    return found


def configuration(name: str) -> str:
    """The configuration that a trial, t0003 or its replicate t0003r1, has drawn."""
    return name.partition("r")[0]


def crowding_distance(values: np.ndarray) -> np.ndarray:
    """Distance to the neighbours, `[N]`, of `values [N, M]` of one rank; the ends of an objective are infinitely far.

    Deb et al. 2002 (NSGA-II), section III.B.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        distance[order[[0, -1]]] = np.inf
        if len(order) > 2 and ordered[-1] > ordered[0]:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distance
