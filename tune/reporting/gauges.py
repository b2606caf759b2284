"""Prometheus gauges of a running study, at the metrics port of the driver's node.

    Gauges("kd_prune-x", log.state, front).step(["t0003"])

    ray_asc_tune_val_macro_avg_acc{study, trial}    validation accuracy of a running trial's newest epoch
    ray_asc_tune_macs{study, trial}                 MACs of a running trial's deployed network
    ray_asc_tune_epochs{study, trial}               epochs that a running trial has trained
    ray_asc_tune_trials{study, status}              number of trials
    ray_asc_tune_rejected{study, reason}            number of sampled configurations that were not trained
    ray_asc_tune_front_size{study}                  number of non-dominated networks within the limits
    ray_asc_tune_best_val_macro_avg_acc{study}      best validation accuracy of these networks

All values come from the state of the study, so a resumed study continues with its earlier values. Gauges cannot be
deleted, but Ray drops a series two report intervals (20 s) after it was last set. Only running trials are set, so a
study of 10,000 trials has only as many series as concurrent trials, and a failed driver leaves no series behind.
"""

import math
import time

from ray.util.metrics import Gauge

from tune.reporting.front import RunningFront
from tune.search.optuna_study import OBJECTIVES
from tune.study.state import STATUSES, StudyState

EVERY_S = 2.0  # well below Ray's report interval of 10 s
_OF_A_TRIAL = {
    "val_macro_avg_acc": "validation accuracy of a running trial's last epoch",
    "macs": "multiply-accumulate operations of a running trial's network as deployed",
    "epochs": "epochs that a running trial has trained, over all stages",
}
_OF_A_STUDY = {
    "trials": ("trials by status", ("status",)),
    "rejected": ("sampled configurations that were not trained", ("reason",)),
    "front_size": ("non-dominated networks within the limits", ()),
    "best_val_macro_avg_acc": ("best validation accuracy of networks within the limits", ()),
}


class Gauges:
    """Sets the gauges every `EVERY_S` seconds while the study runs, and once at its end. Ray must have been started."""

    def __init__(self, study: str, state: StudyState, front: RunningFront):
        self._study, self._state, self._front = study, state, front
        self._set_at = -math.inf
        tags = {name: (text, ("trial",)) for name, text in _OF_A_TRIAL.items()} | _OF_A_STUDY
        self._gauges = {
            name: Gauge(f"asc_tune_{name}", description=text, tag_keys=("study", *keys))
            for name, (text, keys) in tags.items()
        }

    def step(self, running: list[str], last: bool = False) -> None:
        """Set the gauges if EVERY_S has passed or this is the `last` call; `running` names the running trials."""
        if last or time.monotonic() - self._set_at > EVERY_S:
            self._set_at = time.monotonic()
            for (name, tags), value in self.values(running).items():
                self._gauges[name].set(value, {"study": self._study, **dict(tags)})

    def values(self, running: list[str]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return {(gauge, its tags without the study): value}, without values that are missing or not finite."""
        found: dict[tuple[str, tuple[tuple[str, str], ...]], float | None] = {}
        for name in set(running) & set(self._state.trials):
            trial = self._state.trials[name]
            figures = trial.figures | {"epochs": trial.epochs}
            found |= {(figure, (("trial", name),)): figures.get(figure) for figure in _OF_A_TRIAL}
        counts = self._state.counts()
        found |= {("trials", (("status", status),)): counts.get(status, 0) for status in STATUSES}
        found |= {("rejected", (("reason", reason),)): n for reason, n in self._state.rejected.items()}
        accuracy = list(OBJECTIVES).index("val_macro_avg_acc")
        found["front_size", ()] = len(self._front.values)
        found["best_val_macro_avg_acc", ()] = max((v[accuracy] for v in self._front.values), default=None)
        return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}
