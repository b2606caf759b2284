"""Early stopping: asynchronous successive halving, on one objective or several.

`asha` ranks a rung by validation accuracy (Li et al. 2020). `mo_asha` ranks it by non-dominated sorting of accuracy
and MACs, ties broken by crowding distance (Schmucker et al. 2021), so that a small network is measured against small
ones. Rungs lie in the dense phase only: after a prune step, accuracies of different trials no longer compare.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from analysis.front import nondominated_rank
from tune.search import OBJECTIVES


class SuccessiveHalving(FIFOScheduler):
    """Stops a trial that is not among the best 1/`factor` of those that reached the same rung.

    `results` is the folder of Ray's trial folders: rungs are rebuilt from the results on disk when a study resumes,
    since Ray does not bring a scheduler's state back.
    """

    def __init__(self, objectives: dict[str, str], first_rung: int, last_rung: int, factor: float, results: Path):
        super().__init__()
        self.objectives, self.factor, self.results = objectives, factor, results
        self.milestones = milestones(first_rung, last_rung, factor)
        self.rungs: dict[int, dict[str, tuple[float, ...]]] = {m: {} for m in self.milestones}
        self._rebuilt = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not self._rebuilt:
            self._rebuilt = True
            for path in sorted(self.results.glob("*/result.json")):
                whole, _, _ = path.read_text().rpartition("\n")  # a kill can leave half a line
                for line in whole.splitlines():
                    self.record(path.parent.name, json.loads(line))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        keep = self.record(trial.config["trial"], result)
        return TrialScheduler.CONTINUE if keep else TrialScheduler.STOP

    def record(self, name: str, result: dict[str, Any]) -> bool:
        """Enter a result into the rung it reached, if any; whether the trial may go on."""
        rung = self.rungs.get(result.get("training_iteration", -1))
        if rung is None or result.get("done") or result.get("stage", 0) > 0:
            return True
        rung.setdefault(name, tuple(float(result[objective]) for objective in self.objectives))
        return self.position(rung, name) < max(1, int(np.ceil(len(rung) / self.factor)))

    def position(self, rung: dict[str, tuple[float, ...]], name: str) -> int:
        """How many of the rung's trials are better than `name`: lower rank, or same rank and less crowded."""
        values = np.array(list(rung.values()))
        rank = nondominated_rank(values, list(self.objectives.values()))
        order = np.lexsort((np.arange(len(values)), -crowding_distance(values, rank), rank))
        return int(np.flatnonzero(order == list(rung).index(name))[0])

    def debug_string(self) -> str:
        return " | ".join(f"rung {m}: {len(r)} trials" for m, r in self.rungs.items())


def milestones(first: int, last: int, factor: float) -> list[int]:
    """Epochs first, first * factor, ... up to `last`."""
    found, epoch = [], float(first)
    while round(epoch) <= last:
        found.append(round(epoch))
        epoch *= factor
    return found


def crowding_distance(values: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Distance to the neighbours of the same rank, `[N]`; the ends of each objective are infinitely far.

    Deb et al. 2002 (NSGA-II), section III.B.
    """
    distance = np.zeros(len(values))
    for r in np.unique(rank):
        members = np.flatnonzero(rank == r)
        for column in values[members].T:
            order = members[np.argsort(column, kind="stable")]
            ordered = np.sort(column, kind="stable")
            distance[order[[0, -1]]] = np.inf
            if len(order) > 2 and ordered[-1] > ordered[0]:
                distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distance


def _halving(objectives: dict[str, str]) -> Callable[..., TrialScheduler]:
    def build(dense_epochs: int, results: Path) -> TrialScheduler:
        # from an eighth of the dense epochs, but not before the fourth, to the half: later there is little to save
        return SuccessiveHalving(objectives, max(4, dense_epochs // 8), dense_epochs // 2, 2.0, results)

    return build


SCHEDULERS: dict[str, Callable[..., TrialScheduler]] = {
    "mo_asha": _halving(OBJECTIVES),
    "asha": _halving({k: v for k, v in OBJECTIVES.items() if k == "val_macro_avg_acc"}),
    "fifo": lambda dense_epochs, results: FIFOScheduler(),
}
