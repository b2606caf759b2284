"""Prometheus gauges of a running study, which Ray exports at the metrics port of the driver's node.

    gauges = Gauges("kd_prune-x", state, front)     # name of the study, its StudyState, its RunningFront
    gauges.step(["t0003"])                          # names of the running trials; called often

    ray_asc_tune_val_macro_avg_acc{study, trial}    validation accuracy of a running trial's newest epoch
    ray_asc_tune_macs{study, trial}                 MACs of a running trial's deployed network
    ray_asc_tune_epochs{study, trial}               epochs that a running trial has trained, over all stages
    ray_asc_tune_trials{study, status}              number of trials with this status
    ray_asc_tune_rejected{study, reason}            number of samples that were rejected for this reason
    ray_asc_tune_front_size{study}                  number of non-dominated networks within the limits
    ray_asc_tune_best_val_macro_avg_acc{study}      best validation accuracy of the networks within the limits

All values are computed from the events of the study, so a resumed study continues with its earlier values. Ray drops a
time series 20 s (two report intervals) after its last value was set. So the series of a trial disappear after its end,
because they are set only while the trial runs, and the series of a killed driver disappear, too.
"""

import math
import time

from ray.util.metrics import Gauge

from tune.reporting.front import RunningFront
from tune.search.optuna_study import OBJECTIVES
from tune.study.state import STATUSES, StudyState

EVERY_S = 2.0  # well below Ray's report interval of 10 s
_OF_A_TRIAL = {
    "val_macro_avg_acc": "validation accuracy of a running trial's newest epoch",
    "macs": "multiply-accumulate operations of a running trial's network as deployed",
    "epochs": "epochs that a running trial has trained, over all stages",
}
_OF_A_STUDY = {
    "trials": ("number of trials, by status", ("status",)),
    "rejected": ("number of sampled configurations that were not trained, by reason", ("reason",)),
    "front_size": ("number of non-dominated networks within the limits", ()),
    "best_val_macro_avg_acc": ("best validation accuracy of networks within the limits", ()),
}


class Gauges:
    """Sets the Prometheus gauges of the study with the name `study`. Ray must have been started.

    The values are read from `state` (a StudyState) and `front` (a RunningFront). Both must be reducers of the study's
    log, which keeps them up to date.
    """

    def __init__(self, study: str, state: StudyState, front: RunningFront):
        self._study, self._state, self._front = study, state, front
        self._set_at = -math.inf
        tags = {name: (text, ("trial",)) for name, text in _OF_A_TRIAL.items()} | _OF_A_STUDY
        self._gauges = {
            name: Gauge(f"asc_tune_{name}", description=text, tag_keys=("study", *keys))
            for name, (text, keys) in tags.items()
        }

    def step(self, running: list[str], last: bool = False) -> None:
        """Set the gauges, unless they were set in the last EVERY_S seconds; with `last=True`, set them in any case.

        `running` holds the names of the running trials.
        """
        if last or time.monotonic() - self._set_at > EVERY_S:
            self._set_at = time.monotonic()
            for (name, tags), value in self.values(running).items():
                self._gauges[name].set(value, {"study": self._study, **dict(tags)})

    def values(self, running: list[str]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return the current values as {(gauge name, tags): value}, without values that are missing or not finite.

        Gauge names lack the prefix "asc_tune_". `tags` has (key, value) pairs, such as ("trial", "t0003"), but not the
        tag `study`. `running` holds the names of the running trials.
        """
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
