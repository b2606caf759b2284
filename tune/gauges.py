"""A running study's figures as Prometheus gauges, at the metrics port of the node that the driver runs on.

    Gauges("kd_prune-x", journal.log)        a callback for Ray Tune's RunConfig

    ray_asc_tune_val_macro_avg_acc{study, trial}    of the trials that run now: the last epoch's figures
    ray_asc_tune_macs{study, trial}
    ray_asc_tune_epochs{study, trial}
    ray_asc_tune_trials{study, status}              how many
    ray_asc_tune_rejected{study, reason}            sampled configurations that were not trained
    ray_asc_tune_front_size{study}                  non-dominated points of complete trials, within the limits
    ray_asc_tune_best_val_macro_avg_acc{study}      among them

All comes from the journal's log, so a resumed study goes on with its earlier figures. Gauges cannot be deleted, but Ray
forgets a series two report intervals (20 s) after it was last set: only running trials are set, so that a study of
10,000 trials has as many series at a time as trials run at once, and a failed driver leaves none.
"""

import math
import time
from typing import Any

import ray.tune as rt
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from analysis.front import pareto_mask
from tune.journal import STATUSES, StudyLog
from tune.search import OBJECTIVES

EVERY_S = 2.0  # well below Ray's report interval of 10 s
_OF_A_TRIAL = {
    "val_macro_avg_acc": "validation accuracy of a running trial's last epoch",
    "macs": "multiply-accumulate operations of a running trial's network as deployed",
    "epochs": "epochs that a running trial has trained, over all stages",
}
_OF_A_STUDY = {
    "trials": ("trials by status", ("status",)),
    "rejected": ("sampled configurations that were not trained", ("reason",)),
    "front_size": ("non-dominated points of complete trials", ()),
    "best_val_macro_avg_acc": ("best validation accuracy of complete trials within the limits", ()),
}


class RunningFront:
    """The front of the points of complete trials, kept as trials end: cheap however many there are."""

    def __init__(self, log: StudyLog):
        self._log = log
        self._taken: set[str] = set()
        self.values: list[list[float]] = []  # [N, objectives]

    def update(self) -> list[list[float]]:
        """Take in the trials that have completed since."""
        done = [t for t in self._log.trials.values() if t.status == "complete" and t.name not in self._taken]
        self._taken.update(t.name for t in done)
        new = [[float(p[name]) for name in OBJECTIVES] for t in done for p in t.points if p["feasible"]]
        if new:
            values = self.values + new
            self.values = [
                v for v, best in zip(values, pareto_mask(values, list(OBJECTIVES.values())), strict=True) if best
            ]
        return self.values


class Gauges(rt.Callback):
    """Sets the gauges every `EVERY_S` seconds while the study runs, and once at its end."""

    def __init__(self, study: str, log: StudyLog):
        self._study, self._log = study, log
        self._front = RunningFront(log)
        self._set_at = -math.inf
        self._gauges: dict[str, Gauge] = {}

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles callbacks with its snapshots, of which we use none
        return {}

    def setup(self, *args, **info) -> None:
        tags = {name: (told, ("trial",)) for name, told in _OF_A_TRIAL.items()} | _OF_A_STUDY
        self._gauges = {
            name: Gauge(f"asc_tune_{name}", description=told, tag_keys=("study", *keys))
            for name, (told, keys) in tags.items()
        }

    def on_step_end(self, iteration: int, trials: list[Trial], **info) -> None:
        if time.monotonic() - self._set_at > EVERY_S:
            self._set_at = time.monotonic()
            self.refresh([t.config["trial"] for t in trials if t.status == Trial.RUNNING])

    def on_experiment_end(self, trials: list[Trial], **info) -> None:
        self.refresh([])

    def refresh(self, running: list[str]) -> None:
        """Set every gauge from the log; `running` names the trials that train now."""
        for name in set(running) & set(self._log.trials):
            last = self._log.trials[name].last
            for figure in _OF_A_TRIAL:
                self._set(figure, last.get(figure), trial=name)
        counts = self._log.counts()
        for status in STATUSES:
            self._set("trials", counts.get(status, 0), status=status)
        for reason, count in self._log.rejected.items():
            self._set("rejected", count, reason=reason)
        front = self._front.update()
        self._set("front_size", len(front))
        accuracy = list(OBJECTIVES).index("val_macro_avg_acc")
        self._set("best_val_macro_avg_acc", max((v[accuracy] for v in front), default=None))

    def _set(self, name: str, value: float | None, **tags: str) -> None:
        if value is not None and math.isfinite(value):
            self._gauges[name].set(value, {"study": self._study, **tags})
