"""Early stopping by asynchronous successive halving (ASHA), on one or several objectives.

    rungs = build_rungs("mo_asha", dense_epochs=8)     # None for fifo and pbt, which have no rungs
    log.attach(rungs)
    rungs.should_stop("t0003")                         # after each event

`asha` ranks a rung by validation accuracy (Li et al. 2020). `mo_asha` ranks it by non-dominated sorting of accuracy
and MACs, ties broken by crowding distance (Schmucker et al. 2021), so that a small network is compared with small
ones; it also has rungs after each prune step. Population based training is in tune/search/ray_adapter.py.
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
    "mo_asha": "stops trials with low accuracy for their MACs",
    "asha": "stops trials with low accuracy",
    "fifo": "stops no trial",
    "pbt": "population based training: trials of one network copy the weights and hyperparameters of better ones",
}
Rung = tuple[str, int]  # ("dense", epoch), or ("step", k): the network retrained after prune step k
Values = tuple[float, ...]


class SchedulerError(ValueError):
    """An unknown scheduler, or one that cannot search the given space."""


def build_rungs(name: str, dense_epochs: int) -> "SuccessiveHalving | None":
    """Return the rungs of the scheduler `name`; None if it has no rungs."""
    if name not in SCHEDULERS:
        raise SchedulerError(f"unknown scheduler {name!r}: choose from {', '.join(SCHEDULERS)}")
    # from 1/8 of the dense epochs, but not before epoch 4, to 1/2: a later stop saves little
    epochs = milestones(max(4, dense_epochs // 8), dense_epochs // 2, 2.0)
    if name == "asha":  # no rungs after pruning: it is expected to reduce the accuracy
        return SuccessiveHalving({"val_macro_avg_acc": "max"}, epochs)
    return SuccessiveHalving(OBJECTIVES, epochs, after_steps=True) if name == "mo_asha" else None


class SuccessiveHalving:
    """Reducer that stops a trial unless it is among the best 1/`factor` of the trials that reached its rung so far.

    Rungs are at `epochs` of the dense phase and, with `after_steps`, after the retraining of each prune step. The
    first result of a trial at a rung counts. Only the first trial of a configuration is ranked, and its replicates
    follow its decision: a mean over only the luckiest seeds would be too high. Decisions depend only on the order of
    the events.
    """

    def __init__(
        self, objectives: dict[str, str], epochs: Sequence[int], factor: float = 2.0, after_steps: bool = False
    ):
        self.objectives, self.epochs, self.factor, self.after_steps = objectives, frozenset(epochs), factor, after_steps
        self.rungs: dict[Rung, dict[str, Values]] = {("dense", epoch): {} for epoch in epochs}
        self._reached: dict[str, Rung] = {}  # first trial of a configuration -> the newest rung with a value of it
        self._passed: dict[str, set[Rung]] = {}  # trial -> the rungs that it has reached
        self._confirmations: set[str] = set()  # trials added by --confirm: never stopped
        self._ended: dict[str, str] = {}  # trial -> outcome
        self._decisions: dict[tuple[Rung, str], bool] = {}  # cached: entries of a rung before a trial's never change

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
        """Return whether to stop an open trial now. A replicate is stopped at the rung where the first trial of its
        configuration was stopped, so that its results up to there enter the mean."""
        first = configuration_of(name)
        rung = self._reached.get(first)
        if name in self._confirmations or rung is None or rung not in self._passed.get(name, ()):
            return False
        return self._ended[first] == "stopped" if first in self._ended else not self._passes(rung, first)

    def digest(self) -> str:
        """Return a hash of the rungs: their trials and values in order of entry, and the outcomes of ended trials."""
        content = [[str(rung), list(entries.items())] for rung, entries in sorted(self.rungs.items())]
        text = json.dumps([content, sorted(self._ended.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _enter(self, name: str, rung: Rung, figures) -> None:
        values = tuple(float("nan" if figures.get(o) is None else figures[o]) for o in self.objectives)
        entries = self.rungs.setdefault(rung, {})
        self._passed.setdefault(name, set()).add(rung)
        if name == configuration_of(name) and name not in entries and np.isfinite(values).all():
            entries[name] = values
            self._reached[name] = rung

    def _passes(self, rung: Rung, name: str) -> bool:
        """Return whether the rung promotes trial `name`, compared with the trials that reached the rung before it."""
        if (rung, name) not in self._decisions:
            entries = list(self.rungs[rung].items())
            position = next(i for i in reversed(range(len(entries))) if entries[i][0] == name)
            self._decisions[rung, name] = self._is_kept([values for _, values in entries[: position + 1]])
        return self._decisions[rung, name]

    def _is_kept(self, values: list[Values]) -> bool:
        """Return whether the last of `values` is among the best 1/factor: by non-domination rank, then by crowding
        distance (larger is better).

        A non-dominated trial is always kept, because with several objectives all trials of a rung may be non-dominated.
        Stopping half of these as well cost 0.025 +- 0.012 of the final hypervolume on tests/bench/data/curves.csv.gz
        (300 epochs, 20 seeds); a rung at the end of the dense phase cost 0.053 +- 0.015.
        """
        rank = nondominated_rank(np.array(values), list(self.objectives.values()))
        if rank[-1] == 0:
            return True
        crowding = crowding_distance(np.array(values)[rank == rank[-1]])
        # among equal crowding distances the earlier trial is better
        better = int((rank < rank[-1]).sum()) + int((crowding[:-1] >= crowding[-1]).sum())
        return better < np.ceil(len(values) / self.factor)


def milestones(first: int, last: int, factor: float) -> list[int]:
    """Return the epochs `first`, `first * factor`, `first * factor^2`, ... up to `last`, rounded."""
    found, epoch = [], float(first)
    while round(epoch) <= last:
        found.append(round(epoch))
        epoch *= factor
    return found


def crowding_distance(values: np.ndarray) -> np.ndarray:
    """Return the crowding distances `[N]` of N trials of one rank with the objectives `values [N, M]`. The distance of
    the best and of the worst trial in an objective is infinite.

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
