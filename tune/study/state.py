"""The state of a study (trials, rejected samples, drivers), computed by applying its events one after the other.

state = StudyState()
for event in read_events(Path("runs/x")):     # the events in the journal of study x (tune/study/journal.py)
    state.apply(event)
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tune.study.events import (
    REMEDY,
    ConfigurationChanged,
    DriverStarted,
    EpochReported,
    Event,
    EventError,
    Outcome,
    PointMeasured,
    SampleRejected,
    SpaceExhausted,
    TrialCreated,
    TrialEnded,
    TrialRestored,
    TrialRetried,
)

# outcome -> status shown in tables; only `crashed` trials are retried
STATUS: dict[Outcome, str] = {
    "completed": "complete",
    "stopped": "stopped early",
    "failed": "failed",
    "crashed": "crashed",
}
STATUSES = ("running", *STATUS.values())
_BULKY = ("confusion", "widths")  # fields of a point that are written to info.json but not kept in memory


def is_first(point: dict[str, Any], known: list[dict[str, Any]]) -> bool:
    """Return whether `point` is the first measurement of its network: no point in `known` has the same prune step.

    `known` holds the earlier points of the same trial. A restored trial may measure a network again; then only the
    first measurement counts.
    """
    step = point["step"]
    return all(other["step"] != step for other in known)


class Reducer(Protocol):
    """An object whose state is computed by applying the events of a study in order, and depends on nothing else.

    So a replay of the events restores its state. StudyLog (tune/study/log.py) calls `apply` with each event.
    """

    def apply(self, event: Event) -> None: ...


@dataclass
class TrialState:
    """The state of one trial. The fields up to `widths` are described at TrialCreated in tune/study/events.py."""

    name: str  # t0003; t0003r1 is its first replicate
    config_id: str
    replicate: int
    params: dict[str, Any]
    values: dict[str, Any]
    key: str
    excess: float
    attributes: dict[str, Any]
    confirms: bool
    widths: list[dict[str, Any]]
    created: str  # UTC
    changed: str  # UTC time of the newest event
    outcome: Outcome | None = None
    reason: str | None = None  # why it failed or crashed
    epochs: int = 0  # reported epochs over all stages
    repeated: int = 0  # epochs that were trained again after a kill or a crash
    restores: int = 0
    stage: int = 0  # stage of the newest epoch; 0: dense; k: after prune step k
    epoch: int = 0  # 1, 2, ... within the stage; 0: none reported
    figures: dict[str, float | None] = field(default_factory=dict)  # metrics of the newest epoch
    points: list[dict[str, Any]] = field(default_factory=list)  # measured networks: see StudyState
    created_s: float = 0.0  # `StudyState.search_s` when the trial was created
    ended_s: float | None = None  # `StudyState.search_s` when the trial ended; None: it has not ended
    stopped_by: str | None = None  # what stopped it: `TrialEnded.by`

    @property
    def ended(self) -> bool:
        return self.outcome is not None

    @property
    def status(self) -> str:
        return STATUS[self.outcome] if self.outcome else "running"


class StudyState:
    """Reducer that keeps the state of each trial of a study, and counts its rejected samples and its drivers.

    The points of a trial lack the fields in _BULKY and have two more: `search_s` and `search_epochs` are the values of
    `search_s` and `epochs` of this object when the network was measured.
    """

    def __init__(self):
        self.trials: dict[str, TrialState] = {}
        self.rejected: Counter[str] = Counter()  # reason -> number of samples
        self.examples: dict[str, str] = {}  # reason -> one sample
        self.drivers = 0
        self.exhausted = False  # the newest driver found no further configuration
        self.time = ""  # UTC time of the newest event
        self.started = ""  # UTC time when the newest driver started
        self.ended_before = 0  # trials that had ended when the newest driver started
        self.n_ended = 0
        # run time in seconds, summed over drivers: from the start of each driver to its newest event
        self.search_s = 0.0
        self.epochs = 0  # reported epochs of all trials; those that were trained again after a kill count once

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StudyState) and repr(vars(self)) == repr(vars(other))  # repr: NaN equals NaN

    def apply(self, event: Event) -> None:
        """Update the state by `event`. Raise EventError if `event` contradicts the events that were applied before."""
        if not isinstance(event, DriverStarted):  # between two drivers, the study did not run
            self.search_s += _seconds_between(self.time, event.time)
        self.time = event.time
        name = getattr(event, "trial", None)
        if isinstance(event, DriverStarted):
            self.drivers, self.exhausted = self.drivers + 1, False
            self.started, self.ended_before = event.time, self.n_ended
        elif isinstance(event, SpaceExhausted):
            self.exhausted = True
        elif isinstance(event, SampleRejected):
            self.rejected[event.reason] += 1
            self.examples.setdefault(event.reason, event.example)
        elif isinstance(event, TrialCreated):
            self._create(event)
        elif name is not None:
            if name not in self.trials:
                raise EventError(
                    f"event {event.kind!r} names trial {name!r}; expected a trial that an earlier event created; "
                    f"{REMEDY}"
                )
            self._change(self.trials[name], event)

    def _create(self, event: TrialCreated) -> None:
        if event.trial in self.trials:
            raise EventError(
                f"event {event.kind!r} creates trial {event.trial!r}, which exists; expected a new name; {REMEDY}"
            )
        if event.config_id != event.trial and event.config_id not in self.trials:
            raise EventError(
                f"config_id of trial {event.trial!r} is {event.config_id!r}; expected its own name, or a trial that an "
                f"earlier event created; {REMEDY}"
            )
        names = ("config_id", "replicate", "params", "values", "key", "excess", "attributes", "confirms", "widths")
        shared = {name: getattr(event, name) for name in names}
        times: dict[str, Any] = {"created": event.time, "changed": event.time, "created_s": self.search_s}
        self.trials[event.trial] = TrialState(event.trial, **shared, **times)

    def _change(self, trial: TrialState, event: Event) -> None:
        if trial.ended and not (isinstance(event, TrialRetried) and trial.outcome == "crashed"):
            raise EventError(
                f"event {event.kind!r} names trial {trial.name!r}, which has ended ({trial.outcome}); expected a trial "
                f"that has not ended; {REMEDY}"
            )
        trial.changed = event.time
        if isinstance(event, TrialRetried):
            self.n_ended -= trial.ended
            trial.outcome = trial.reason = trial.stopped_by = trial.ended_s = None
        elif isinstance(event, TrialRestored):
            trial.restores += 1
        elif isinstance(event, ConfigurationChanged):
            trial.values = trial.values | event.values
        elif isinstance(event, EpochReported):
            trial.repeated += event.epochs <= trial.epochs
            if event.epochs > trial.epochs:
                self.epochs += event.epochs - trial.epochs
                trial.epochs, trial.stage, trial.epoch = event.epochs, event.stage, event.epoch
                trial.figures = event.figures
        elif isinstance(event, PointMeasured):
            if is_first(event.point, trial.points):
                kept = {k: v for k, v in event.point.items() if k not in _BULKY}
                trial.points.append(kept | {"search_s": self.search_s, "search_epochs": self.epochs})
        elif isinstance(event, TrialEnded):
            self.n_ended += 1
            trial.outcome, trial.reason, trial.stopped_by = event.outcome, event.reason, event.by
            trial.ended_s = self.search_s

    @property
    def open(self) -> list[TrialState]:
        """The trials that have not ended, in the order of their creation."""
        return [trial for trial in self.trials.values() if not trial.ended]

    @property
    def crashed(self) -> list[TrialState]:
        """The crashed trials, which a resume retries."""
        return [trial for trial in self.trials.values() if trial.outcome == "crashed"]

    def counts(self) -> dict[str, int]:
        """Return {status: number of trials} for each status that occurs. One more key, "rejected", has the number of
        rejected samples."""
        by_status = Counter(trial.status for trial in self.trials.values())
        return {s: by_status[s] for s in STATUSES if by_status[s]} | {"rejected": self.rejected.total()}


def _seconds_between(earlier: str, later: str) -> float:
    """Return the seconds between two times of events (UTC in ISO format).

    The result is 0 if `later` is before `earlier`, because the clock of the machine was set back, and if one of them is
    not a valid time: the journal may come from somebody else.
    """
    if earlier == later:  # most events follow another one within a second
        return 0.0
    try:
        return max(0.0, (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())
    except (ValueError, TypeError):  # TypeError: only one of them has a time zone
        return 0.0
