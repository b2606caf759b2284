"""A study's journal: each event a JSON line, appended the moment it happens; whatever else is told of a study follows.

    <study>/journal/000.jsonl     of the first driver, 001.jsonl of the one that resumed it, ...

Events (`event` names the kind, `time` is in UTC):

    run      a driver began                        {command}
    known    a point of another study              {params, point}
    reject   a sample that is not trained          {params, reason, example, excess}
    trial    a trial that is to be trained   {trial, params, values, config_id, replicate, excess, key, attributes}
    judged   the gate's word on what is not drawn  {params, key, excess}
    retry    a crashed trial is tried again        {trial}
    restore  a trial goes on from a checkpoint     {trial, epochs}     trained so far, there
    change   population based training             {trial, values}     the configuration keys that it changed
    result   an epoch, or a trial's end            {trial, ...a Record's fields, done, finished, failure?, point?}
    exhausted    the space has no more configurations to draw
    rungs    a driver ended in order               {digest}     of its scheduler's rungs
    end      a trial that crashed for good, or that a scheduler ended    {trial, status, failure}

A resume reads them all again: searcher, rungs and tables come back from here, and nothing is kept elsewhere. The
journal of a killed driver may end in half a line, which is dropped; the next driver opens a file of its own.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trainables.records import now

FOLDER = "journal"
STATUSES = ("running", "complete", "stopped early", "failed")
PATIENCE_S = 600.0  # how long a driver waits for a storage that is away
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_BULKY = ("confusion", "widths")  # of a point; on disk in info.json, dropped from memory when a trial has ended


class JournalError(ValueError):
    """A journal with a damaged line."""


@dataclass
class TrialLog:
    """What the journal says of one trial."""

    name: str  # t0003; t0003r1 is its first replicate
    config_id: str  # name of the configuration's first trial
    replicate: int  # 0, 1, ...: which of the configuration's seeds
    params: dict[str, Any]  # as Optuna drew them
    values: dict[str, Any]  # what they mean: configuration keys
    status: str = "running"
    failure: str | None = None
    crashed: bool = False  # failed for a reason outside the configuration: a resume tries it again
    epochs: int = 0  # of which a result is known
    repeated: int = 0  # epochs that were trained again after a kill or a crash
    restores: int = 0
    last: dict[str, Any] = field(default_factory=dict)  # the last result
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.status != "running"


@dataclass
class StudyLog:
    """The state of a study as its events, applied in order, make it."""

    trials: dict[str, TrialLog] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)  # reason -> samples
    examples: dict[str, str] = field(default_factory=dict)  # reason -> one of them
    runs: int = 0  # drivers so far
    exhausted: bool = False  # so many samples in a row were rejected that the search ended

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event in."""
        kind = event["event"]
        if kind == "run":
            self.runs, self.exhausted = self.runs + 1, False
        elif kind == "exhausted":
            self.exhausted = True
        elif kind == "reject":
            self.rejected[event["reason"]] += 1
            self.examples.setdefault(event["reason"], event["example"])
        elif kind == "trial":
            names = ("config_id", "replicate", "params", "values")
            self.trials[event["trial"]] = TrialLog(event["trial"], **{k: event[k] for k in names})
        elif kind in ("retry", "restore", "change", "result", "end"):
            getattr(self, f"_{kind}")(self.trials[event["trial"]], event)

    def _restore(self, trial: TrialLog, event: dict[str, Any]) -> None:
        trial.restores += 1

    def _change(self, trial: TrialLog, event: dict[str, Any]) -> None:
        trial.values = trial.values | event["values"]

    def _retry(self, trial: TrialLog, event: dict[str, Any]) -> None:
        trial.status, trial.failure, trial.crashed = "running", None, False

    def _result(self, trial: TrialLog, event: dict[str, Any]) -> None:
        again = event["epochs"] <= trial.epochs and not event.get("failure")
        trial.repeated += again
        if not again:
            trial.epochs = event["epochs"]
            trial.last = {k: v for k, v in event.items() if k not in ("event", "trial", "point")}
        point = event.get("point")
        if point and all(p["step"] != point["step"] for p in trial.points):
            trial.points.append(point)
        if event.get("failure"):
            trial.status, trial.failure = "failed", event["failure"]
        elif event["done"]:
            trial.status = "complete" if event["finished"] else "stopped early"
        if trial.ended:
            self.release(trial)

    def _end(self, trial: TrialLog, event: dict[str, Any]) -> None:
        if not trial.ended:
            trial.status, trial.failure = event["status"], event["failure"]
            trial.crashed = event["status"] == "failed"
            self.release(trial)

    @staticmethod
    def release(trial: TrialLog) -> None:
        """Forget what only info.json needs."""
        trial.points = [{k: v for k, v in p.items() if k not in _BULKY} for p in trial.points]

    @property
    def n_ended(self) -> int:
        return sum(trial.ended for trial in self.trials.values())

    def counts(self) -> dict[str, int]:
        """Trials by status, and the samples that never became one."""
        by_status = Counter(t.status for t in self.trials.values())
        return {s: by_status[s] for s in STATUSES if by_status[s]} | {"rejected": self.rejected.total()}


def segments(study: Path) -> list[Path]:
    """The journal's files, oldest first."""
    return sorted((study / FOLDER).glob("*.jsonl"))


def read_events(study: Path) -> Iterator[dict[str, Any]]:
    """All events of a study, in order; half a line at a file's end is left out.

    JournalError names a line in the middle that is not JSON.
    """
    for path in segments(study):
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise JournalError(
                    f"{path}, line {number} is damaged: {error}; put a copy of the file in its place, or delete the "
                    "line and with it what it tells"
                ) from error


def read_log(study: Path) -> StudyLog:
    """The state that a study's journal tells; empty where there is none yet."""
    return fold(read_events(study))


def fold(events: Iterable[dict[str, Any]]) -> StudyLog:
    log = StudyLog()
    for event in events:
        log.apply(event)
    return log


def patiently(write: Callable[[], _T], tell: Callable[[str], None]) -> _T:
    """What `write` returns, tried again every second while it raises OSError; the error after PATIENCE_S."""
    until, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            result = write()
        except OSError as error:
            if time.monotonic() > until:
                raise
            if not told:
                tell(f"the storage cannot be written ({error}); waiting up to {PATIENCE_S / 60:.0f} min for it")
                told = True
            time.sleep(1)
            continue
        if told:
            tell("the storage is back")
        return result


class Events:
    """A study's events in memory, for a search without a folder; `Journal` writes them down too."""

    def __init__(self, earlier: Iterable[dict[str, Any]] = ()):
        self.earlier = list(earlier)  # of drivers before this one
        self.log = fold(self.earlier)

    def __getstate__(self) -> dict[str, Any]:  # Ray pickles the searcher with its snapshots, of which we use none
        return {}

    def add(self, event: str, **values: Any) -> dict[str, Any]:
        """Take an event in, after it was written down."""
        entry = {"event": event, "time": now(), **values}
        self._write(entry)
        self.log.apply(entry)
        return entry

    def _write(self, entry: dict[str, Any]) -> None:
        """In memory there is nothing to write."""


class Journal(Events):
    """Appends events to a file of its own. For the one driver that holds the study."""

    def __init__(self, study: Path, tell: Callable[[str], None] = _LOG.warning):
        super().__init__(read_events(study))
        self._tell = tell
        (study / FOLDER).mkdir(parents=True, exist_ok=True)
        self.path = study / FOLDER / f"{len(segments(study)):03d}.jsonl"
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._size = 0  # of the whole lines

    def _write(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        patiently(lambda: self._append(line), self._tell)

    def _append(self, line: bytes) -> None:
        """OSError where the line cannot be written, or the file is not in its place; half a line is taken back."""
        opened = os.fstat(self._handle)
        if not os.path.samestat(opened, self.path.stat()):
            raise FileNotFoundError(f"{self.path} is another file than before")
        try:
            if opened.st_size > self._size:  # what a storage that went away kept of half a line
                os.ftruncate(self._handle, self._size)
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)  # a full disk may have taken half a line
            raise
        self._size += written

    def close(self) -> None:
        os.close(self._handle)
