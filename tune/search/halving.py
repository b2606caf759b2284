"""Early stopping: asynchronous successive halving, on one objective or several.

    rungs = build_rungs("mo_asha", dense_epochs=8)     # None for fifo and pbt, which stop nothing
    log.attach(rungs)
    rungs.should_stop("t0003")                         # after each event

`asha` ranks a rung by validation accuracy (Li et al. 2020). `mo_asha` ranks it by non-dominated sorting of accuracy
and MACs, ties broken by crowding distance (Schmucker et al. 2021), so that a small network is compared with small
ones; it has rungs after each prune step, too. Population based training is in tune/search/ray_adapter.py.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from analysis.front import nondominated_rank
from tune.search.history import configuration_of
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import EpochReported, Event, PointMeasured, TrialCreated, TrialEnded, TrialRetried

SCHEDULERS = {
    "mo_asha": "stops what is behind in accuracy for its MACs",
    "asha": "stops what is behind in accuracy",
    "fifo": "stops nothing",
    "pbt": "one network: trials take over the weights and rates of better ones",
}
Rung = tuple[str, int]  # ("dense", epoch), or ("step", k): the network retrained after prune step k
Values = tuple[float, ...]


class SchedulerError(ValueError):
    """A scheduler that does not exist, or that cannot search this space."""


def build_rungs(name: str, dense_epochs: int) -> "SuccessiveHalving | None":
    """The rungs of the scheduler called `name`; None where it has none."""
    if name not in SCHEDULERS:
        raise SchedulerError(f"unknown scheduler {name!r}: choose from {', '.join(SCHEDULERS)}")
    # from an eighth of the dense epochs, but not before the fourth, to the half: later there is little to save
    epochs = milestones(max(4, dense_epochs // 8), dense_epochs // 2, 2.0)
    if name == "asha":  # a pruned network's accuracy alone says little: it was to be less
        return SuccessiveHalving({"val_macro_avg_acc": "max"}, epochs)
    return SuccessiveHalving(OBJECTIVES, epochs, after_steps=True) if name == "mo_asha" else None


class SuccessiveHalving:
    """Stops a trial that is not among the best 1/`factor` of those that reached the same rung before it.

    Rungs lie at `epochs` of the dense phase and, with `after_steps`, after the retraining of each prune step. The
    first result at a rung counts. Only the first trial of a configuration is ranked: its replicates share its fate,
    since a mean over the lucky ones of several seeds is too high. Decisions follow from the order of the events alone.
    """

    def __init__(
        self, objectives: dict[str, str], epochs: Sequence[int], factor: float = 2.0, after_steps: bool = False
    ):
        self.objectives, self.epochs, self.factor, self.after_steps = objectives, frozenset(epochs), factor, after_steps
        self.rungs: dict[Rung, dict[str, Values]] = {("dense", epoch): {} for epoch in epochs}
        self._reached: dict[str, Rung] = {}  # first trial of a configuration -> the newest rung that it has entered
        self._passed: dict[str, set[Rung]] = {}  # trial -> the rungs that it has come to
        self._confirmations: set[str] = set()  # asked for by name: never stopped
        self._ended: dict[str, str] = {}  # trial -> outcome
        self._decisions: dict[tuple[Rung, str], bool] = {}  # remembered: a rung before a trial's entry never changes

    def apply(self, event: Event) -> None:
        if isinstance(event, EpochReported):
            if event.stage == 0 and event.epochs in self.epochs:
                self._enter(event.trial, ("dense", event.epochs), event.figures)
        elif isinstance(event, PointMeasured):
            if self.after_steps and event.point["step"] > 0:
                self._enter(event.trial, ("step", event.point["step"]), event.point)
        elif isinstance(event, TrialCreated):
            if event.confirms:
                self._confirmations.add(event.trial)
        elif isinstance(event, TrialEnded):
            self._ended[event.trial] = event.outcome
        elif isinstance(event, TrialRetried):
            self._ended.pop(event.trial, None)

    def should_stop(self, name: str) -> bool:
        """Whether a trial that has not ended is to be stopped now. A replicate is stopped at the rung where its
        configuration's first trial was: what it measures until then belongs into the mean."""
        first = configuration_of(name)
        rung = self._reached.get(first)
        if name in self._confirmations or rung is None or rung not in self._passed.get(name, ()):
            return False
        return self._ended[first] == "stopped" if first in self._ended else not self._passes(rung, first)

    def digest(self) -> str:
        """A hash of which trial reached which rung with which values, in their order."""
        content = [[str(rung), list(held.items())] for rung, held in sorted(self.rungs.items())]
        text = json.dumps([content, sorted(self._ended.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _enter(self, name: str, rung: Rung, figures) -> None:
        values = tuple(float("nan" if figures.get(o) is None else figures[o]) for o in self.objectives)
        held = self.rungs.setdefault(rung, {})
        self._passed.setdefault(name, set()).add(rung)
        if name == configuration_of(name) and name not in held and np.isfinite(values).all():
            held[name] = values
            self._reached[name] = rung

    def _passes(self, rung: Rung, name: str) -> bool:
        """Whether `name` is among the best of those that had reached the rung when it did."""
        if (rung, name) not in self._decisions:
            held = list(self.rungs[rung].items())
            position = next(i for i in reversed(range(len(held))) if held[i][0] == name)
            self._decisions[rung, name] = self._is_kept([values for _, values in held[: position + 1]])
        return self._decisions[rung, name]

    def _is_kept(self, values: list[Values]) -> bool:
        """Whether the last of `values` is among the best 1/factor, by rank, and within a rank by how little crowded it
        is.

        One that no other dominates is kept in any case: with several objectives a rung may hold nothing else. Stopping
        half of those, too, cost 0.025 +- 0.012 of the final hypervolume on tests/bench/data/curves.csv.gz (300 epochs,
        20 seeds), and a rung at the end of the dense phase 0.053 +- 0.015.
        """
        rank = nondominated_rank(np.array(values), list(self.objectives.values()))
        if rank[-1] == 0:
            return True
        crowding = crowding_distance(np.array(values)[rank == rank[-1]])
        # of equally crowded ones the first to come goes before
        better = int((rank < rank[-1]).sum()) + int((crowding[:-1] >= crowding[-1]).sum())
        return better < np.ceil(len(values) / self.factor)


def milestones(first: int, last: int, factor: float) -> list[int]:
    """Epochs first, first * factor, ... up to `last`."""
    found, epoch = [], float(first)
    while round(epoch) <= last:
        found.append(round(epoch))
        epoch *= factor
    return found


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
