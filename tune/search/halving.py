"""Early stopping by asynchronous successive halving (ASHA), on one or several objectives.

    rungs = build_rungs("mo_asha", dense_epochs=8)     # None for fifo and pbt, which have no rungs
    log.attach(rungs)                                  # log: StudyLog of a study; it passes events to `rungs.apply`
    rungs.should_stop("t0003")                         # True: stop trial t0003; call it after each result of a trial

A rung is a moment of the training at which trials are compared and some are stopped. The scheduler `asha` ranks the
trials of a rung by validation accuracy (Li et al. 2020). `mo_asha` ranks them by non-dominated sorting of accuracy and
MACs, and breaks ties by crowding distance (Schmucker et al. 2021), so that a small network competes with small
networks. `mo_asha` also has a rung after the retraining of each prune step. Population based training (`pbt`) is in
tune/search/ray_adapter.py.
"""

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np

from analysis.front import nondominated_rank
from tune.search.choices import SCHEDULERS
from tune.search.history import configuration_of
from tune.search.optuna_study import OBJECTIVES
from tune.study.events import EpochReported, Event, PointMeasured, TrialCreated, TrialEnded, TrialRetried

Rung = tuple[str, int]  # ("dense", epoch), or ("step", k): the network retrained after prune step k
Values = tuple[float, ...]


class SchedulerError(ValueError):
    """Raised if the name of a scheduler is unknown, or if the scheduler cannot be used with the search space."""


ACCURACY = "val_macro_avg_acc"
# While the learning rate is high, accuracies jump from epoch to epoch. With 16 trials of kd_prune and 18 dense epochs
# on real recordings, the rank correlation of the best accuracy so far with the final one was 0.00 at epoch 4, 0.42 at
# epoch 8 and 0.84 at epoch 12; that of the accuracy itself -0.08, 0.28 and 0.70 (analysis/studies/recipes).
RUNG = 2 / 3  # share of the dense epochs after which trials are compared
LEAST_EPOCHS = 8  # dense epochs; a shorter dense training has no rung


def build_rungs(name: str, dense_epochs: int) -> "SuccessiveHalving | None":
    """Return the early stopping of the scheduler `name` (asha or mo_asha); None for fifo and pbt, which have no rungs.

    `dense_epochs` is the number of epochs of the dense training. The epoch of the dense rung follows from it.
    """
    if name not in SCHEDULERS:
        raise SchedulerError(f"unknown scheduler {name!r}; expected one of {', '.join(SCHEDULERS)}: correct the name")
    epochs = [math.ceil(RUNG * dense_epochs)] if dense_epochs >= LEAST_EPOCHS else []
    if name == "asha":  # no rungs after pruning: it is expected to reduce the accuracy
        return SuccessiveHalving({ACCURACY: "max"}, epochs)
    return SuccessiveHalving(OBJECTIVES, epochs, after_steps=True) if name == "mo_asha" else None


class SuccessiveHalving:
    """Early stopping: a trial that reaches a rung is compared with the trials that reached the rung earlier. It
    continues if none of them dominates it, or if it is among the best 1/`factor` of all these trials.

    Rungs are at the dense epochs `epochs`, where the best accuracy so far counts. With `after_steps`, they are also at
    the end of the retraining after each prune step. `objectives` maps the metrics that rank the trials to "max" or
    "min". If a trial reaches a rung twice (it was restored from a checkpoint), its first result counts. This class is a
    reducer: its state depends only on the events of the study and their order.

    Only the first trial of a configuration is ranked, and its replicates (other seeds) are stopped with it. If the
    replicates were ranked, too, only the best seeds would survive, and their mean accuracy would be too high.
    """

    def __init__(
        self, objectives: dict[str, str], epochs: Sequence[int], factor: float = 2.0, after_steps: bool = False
    ):
        self.objectives, self.epochs, self.factor, self.after_steps = objectives, frozenset(epochs), factor, after_steps
        self.rungs: dict[Rung, dict[str, Values]] = {("dense", epoch): {} for epoch in epochs}
        self._reached: dict[str, Rung] = {}  # first trial of a configuration -> newest rung that ranks it
        self._passed: dict[str, set[Rung]] = {}  # trial -> the rungs that it has reached
        self._confirmations: set[str] = set()  # trials added by --confirm: never stopped
        self._ended: dict[str, str] = {}  # trial -> outcome
        self._best: dict[str, float] = {}  # trial -> best validation accuracy in its dense epochs so far
        self._decisions: dict[tuple[Rung, str], bool] = {}  # final, because only earlier entries of a rung count

    def apply(self, event: Event) -> None:
        if isinstance(event, EpochReported):
            if event.stage == 0:
                self._apply_dense(event)
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
        """Return whether trial `name`, which has not ended, is to be stopped at the newest rung that it has reached.

        A replicate, such as t0003r1, is stopped when it has reached the rung at which the first trial of its
        configuration, t0003, was stopped. A trial that --confirm added is never stopped.
        """
        first = configuration_of(name)
        rung = self._reached.get(first)
        if name in self._confirmations or rung is None or rung not in self._passed.get(name, ()):
            return False
        return self._ended[first] == "stopped" if first in self._ended else not self._passes(rung, first)

    def digest(self) -> str:
        """Return a hash of the state: the trials of each rung with their objectives, and the outcomes of ended trials.

        A driver that resumes the study compares this hash with the one that the earlier driver recorded, and warns if
        they differ.
        """
        content = [[str(rung), list(entries.items())] for rung, entries in sorted(self.rungs.items())]
        text = json.dumps([content, sorted(self._ended.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _apply_dense(self, event: EpochReported) -> None:
        figures, accuracy = event.figures, event.figures.get(ACCURACY)
        if accuracy is not None and math.isfinite(accuracy):
            self._best[event.trial] = best = max(accuracy, self._best.get(event.trial, accuracy))
            figures = figures | {ACCURACY: best}
        if event.epochs in self.epochs:
            self._enter(event.trial, ("dense", event.epochs), figures)

    def _enter(self, name: str, rung: Rung, figures) -> None:
        values = tuple(float("nan" if figures.get(o) is None else figures[o]) for o in self.objectives)
        entries = self.rungs.setdefault(rung, {})
        self._passed.setdefault(name, set()).add(rung)
        if name == configuration_of(name) and name not in entries and np.isfinite(values).all():
            entries[name] = values
            self._reached[name] = rung

    def _passes(self, rung: Rung, name: str) -> bool:
        """Return whether trial `name` continues after `rung`, compared with the trials that reached it earlier."""
        if (rung, name) not in self._decisions:
            entries = list(self.rungs[rung].items())
            position = next(i for i in reversed(range(len(entries))) if entries[i][0] == name)
            self._decisions[rung, name] = self._is_kept([values for _, values in entries[: position + 1]])
        return self._decisions[rung, name]

    def _is_kept(self, values: list[Values]) -> bool:
        """Return whether the newest trial of a rung is non-dominated or among the best 1/factor.

        `values` has the objectives of each trial in the order in which the trials reached the rung, the newest last.
        Trials are ranked by non-domination rank, then by crowding distance (larger is better). A non-dominated trial is
        always kept, because with several objectives all trials of a rung may be non-dominated. Two variants were worse
        on tests/bench/search/data/curves.csv.gz (searches of 300 epochs, 20 seeds). Stopping half of the non-dominated
        trials reduced the final hypervolume by 0.025 +- 0.012, and one more rung at the last dense epoch reduced it by
        0.053 +- 0.015.
        """
        rank = nondominated_rank(np.array(values), list(self.objectives.values()))
        if rank[-1] == 0:
            return True
        crowding = crowding_distance(np.array(values)[rank == rank[-1]])
        # among equal crowding distances the earlier trial is better
        better = int((rank < rank[-1]).sum()) + int((crowding[:-1] >= crowding[-1]).sum())
        return better < np.ceil(len(values) / self.factor)


def crowding_distance(values: np.ndarray) -> np.ndarray:
    """Return the crowding distances [N] of N trials of the same non-domination rank (Deb et al. 2002, section III.B).

    `values [N, M]` has the M objectives of each trial. A large distance means that few trials are similar. The best and
    the worst trial in any objective have an infinite distance.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        distance[order[[0, -1]]] = np.inf
        if len(order) > 2 and ordered[-1] > ordered[0]:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distance
