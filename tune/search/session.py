"""The search, independent of Ray: it supplies trials, records their results as events and decides which trials to stop.

    # log: StudyLog of the study; sampler: FeasibleSampler; rungs: SuccessiveHalving, or None for no early stopping
    session = SearchSession(log, sampler, rungs, scheduler="mo_asha")
    trial = session.next_trial()                     # None: the sampler found no further configuration
    stop = session.report(trial.name, result)        # result: a dict from a Trainable (trainables/ray_trainables.py)
    session.crashed(trial.name, "the node died")     # the trial ends, and a resumed study retries it

One driver process has one session. tune/search/ray_adapter.py connects it to Ray Tune; tests and benchmarks call it
without Ray.
"""

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from tune.search.given import GivenTrials
from tune.search.halving import SuccessiveHalving
from tune.search.sampler import FeasibleSampler
from tune.study.events import (
    FIGURES,
    ConfigurationChanged,
    EpochReported,
    Event,
    PointMeasured,
    TrialEnded,
    TrialRestored,
)
from tune.study.log import StudyLog
from tune.study.state import TrialState

HOPELESS = 3  # number of failed trials with the same reason that end a study in which no network was measured


class SearchSession:
    """Supplies the trials that have not ended, then new ones from `sampler`, and records the results of all in `log`.

    `rungs` decides which trials stop early (None: none does). `scheduler` is the value of --scheduler; the event of a
    stopped trial names it as the cause. If the newest `HOPELESS` failed trials (or `n_trials`, if that is less)
    have the same reason and no network was measured, `hopeless` is set to it, and the caller must end the search.
    """

    def __init__(
        self,
        log: StudyLog,
        sampler: FeasibleSampler | GivenTrials,
        rungs: SuccessiveHalving | None,
        scheduler: str,
        n_trials: int = HOPELESS,
    ):
        self.log, self.sampler, self.rungs, self.scheduler = log, sampler, rungs, scheduler
        self._hopeless_after = min(HOPELESS, n_trials)
        self.hopeless: str | None = None  # reason of the failures that make the study hopeless; None: continue
        self._queue = deque(log.state.open)
        self._known_trials = len(log.state.trials)
        self._any_point = any(trial.points for trial in log.state.trials.values())
        self._failures: list[str] = []  # reasons in this session, before a network was measured

    def next_trial(self) -> TrialState | None:
        """Return the next trial to train; None if the sampler finds no further configuration."""
        if not self._queue:
            self.sampler.draw(self.log)
            trials = list(self.log.state.trials.values())
            self._queue.extend(trials[self._known_trials :])
            self._known_trials = len(trials)
        return self._queue.popleft() if self._queue else None

    def report(self, name: str, result: Mapping[str, Any]) -> bool:
        """Record `result`, which the Trainable of trial `name` reported. Return True if the trial must stop now."""
        trial = self.log.state.trials[name]
        if trial.ended:  # Ray reports "done" twice for a trial that was restored after its last epoch
            return True
        self.log.add(*self._events(trial, result))
        self._any_point = self._any_point or bool(trial.points)
        if not trial.ended and self.rungs and self.rungs.should_stop(name):
            self.log.add(TrialEnded(trial=name, outcome="stopped", by=self.scheduler))
        if trial.ended:
            self._after_end(trial)
        return trial.ended

    def crashed(self, name: str, reason: str) -> None:
        """Record that trial `name` crashed and that Ray does not restart it; a resumed study retries it."""
        self._end(name, TrialEnded(trial=name, outcome="crashed", reason=reason))

    def stopped(self, name: str, by: str) -> None:
        """Record that trial `name` was stopped without a final result; `by` names the cause, such as "ray tune"."""
        self._end(name, TrialEnded(trial=name, outcome="stopped", by=by))

    def _end(self, name: str, event: TrialEnded) -> None:
        trial = self.log.state.trials[name]
        if not trial.ended:
            self.log.add(event)
            self._after_end(trial)

    @staticmethod
    def _events(trial: TrialState, result: Mapping[str, Any]) -> list[Event]:
        """Convert `result`, which the Trainable of `trial` reported, to events, in the order in which they happened."""
        name, events = trial.name, list[Event]()
        if result.get("restored_epochs") is not None:
            events.append(TrialRestored(trial=name, epochs=result["restored_epochs"]))
        config = result.get("config") or {}
        if changed := {k: config[k] for k, v in trial.values.items() if k in config and config[k] != v}:
            events.append(ConfigurationChanged(trial=name, values=changed))  # by population based training
        # first the epochs that an earlier driver trained but did not write before it was killed, then the new epoch
        rows = [row for row in result.get("curve") or () if row["epochs"] > trial.epochs]
        if result.get("trained", True) and not (result.get("failure") or result.get("crash")):
            rows = [*(row for row in rows if row["epochs"] < result["epochs"]), result]
        for row in rows:
            position = {key: row[key] for key in ("stage", "epoch", "epochs")}
            events.append(EpochReported(trial=name, **position, figures={key: row.get(key) for key in FIGURES}))
        known = {point["step"] for point in trial.points}
        new = [point for point in result.get("points") or () if point["step"] not in known]
        events += [PointMeasured(trial=name, point=point) for point in new]
        if result.get("failure"):
            events.append(TrialEnded(trial=name, outcome="failed", reason=result["failure"]))
        elif result.get("crash"):
            events.append(TrialEnded(trial=name, outcome="crashed", reason=result["crash"]))
        elif result.get("done"):
            finished = bool(result.get("finished"))
            by = None if finished else "the trial itself"
            events.append(TrialEnded(trial=name, outcome="completed" if finished else "stopped", by=by))
        return events

    def _after_end(self, trial: TrialState) -> None:
        """Update the sampler and `hopeless` after the end of `trial`.

        The networks after the earlier prune steps of `trial` are results of configurations with fewer prune steps. The
        sampler checks whether these fit the limits, and reports the results to Optuna. `hopeless` is set if the study
        must end: the newest `_hopeless_after` failures have the same reason, and no network was measured.
        """
        self.sampler.settle(self.log)
        if trial.outcome in ("failed", "crashed") and not self._any_point:
            self._failures.append(re.sub(r"\d+", "#", str(trial.reason)))  # ignore differences in numbers
            newest = self._failures[-self._hopeless_after :]
            if len(newest) == self._hopeless_after and len(set(newest)) == 1:
                self.hopeless = str(trial.reason)
