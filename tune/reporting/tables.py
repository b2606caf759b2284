"""The tables of a study, updated while it runs: points.csv, trials.csv, and info.json and results.csv of each trial.

    # log: the StudyLog of the study in `folder`; Retry repeats failed writes, and calls `warn` with a message
    tables = StudyTables(folder, log.state, config, Retry(warn))
    log.attach(tables)                     # now the log passes each event to `tables`
    replay(Reading(folder), log, tables)   # a resume: applies the events of earlier drivers, read from the journal
    tables.flush()                         # writes the tables that changed; called often

The content of all tables is computed from the journal, so the next driver restores a lost or damaged table.
"""

import csv
import io
import itertools
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import make_folder, replace_text
from trainables.outputs.records import EXPERIMENTS, write_info
from tune.reporting.csv_texts import points_text, trials_text
from tune.study.events import EpochReported, Event, PointMeasured, TrialCreated, TrialEnded, TrialRetried
from tune.study.journal import Reading
from tune.study.log import StudyLog
from tune.study.retry import Retry
from tune.study.state import StudyState, TrialState, is_first

CURVE = (
    *("stage", "epoch", "epochs", "train_loss", "val_loss", "val_macro_avg_acc", "val_ece", "train_macro_avg_acc"),
    *("macs", "params", "sparsity", "seconds"),
)  # columns of results.csv
POINTS, TRIALS = "points.csv", "trials.csv"
REPLAY_CHUNK = 500  # number of events between two writes of tables during a replay


@dataclass
class _Trial:
    """What StudyTables keeps of a trial in addition to its TrialState: the rows of results.csv, the points with all
    their keys (TrialState omits the large ones), and what was written already."""

    events: int = 0  # number of the trial's events, also stored in info.json when it is written
    curve: list[dict[str, Any]] = field(default_factory=list)  # rows of results.csv
    points: list[dict[str, Any]] = field(default_factory=list)  # with confusion matrices and widths
    written: int | None = None  # number of rows in results.csv that this driver wrote; None: rewrite the file
    due: bool = False  # whether info.json must be written


class StudyTables:
    """Reducer that collects the content of the tables of the study in `folder`; `flush` writes them.

    `state` is the study's state: each event must be applied to `state` first, then to this reducer. `config` is the
    flat configuration that the sampled values override. `retry` repeats a write while the storage is unavailable.
    """

    def __init__(self, folder: Path, state: StudyState, config: Mapping[str, Any], retry: Retry):
        self.folder, self.table_took_s = folder, 0.0
        self._state, self._config, self._retry = state, config, retry
        self._trials: dict[str, _Trial] = {}  # trials that are open or crashed, or have unwritten files
        self._changed: set[str] = set()
        # whether points.csv or trials.csv must be written soon, and when they were written; `_behind` is also True if
        # trials.csv differs only in the numbers of epochs of running trials
        self._stale, self._behind, self._table_at = True, True, 0.0
        self.elsewhere: Collection[str] = ()  # trials with files in an object store (see `rebuild_tables`)

    def apply(self, event: Event) -> None:
        name = getattr(event, "trial", None)
        if name is None:
            return
        trial = self._trials.setdefault(name, _Trial())
        trial.events += 1
        self._behind = True
        self._changed.add(name)
        if isinstance(event, EpochReported):
            if not trial.curve or event.epochs > trial.curve[-1]["epochs"]:  # skip repeated epochs
                position = {"stage": event.stage, "epoch": event.epoch, "epochs": event.epochs}
                trial.curve.append({key: (position | event.figures).get(key) for key in CURVE})
        elif isinstance(event, PointMeasured):
            if is_first(event.point, trial.points):
                trial.points.append(event.point)
            trial.due = self._stale = True
        elif isinstance(event, TrialEnded):
            trial.due = self._stale = True
        elif isinstance(event, TrialCreated | TrialRetried):
            self._stale = True

    def flush(self, last: bool = False) -> None:
        """Write the tables that changed since the last call.

        points.csv and trials.csv are written at most once a second, and so rarely that they take at most 5 % of the
        driver's time. They are not written for new epochs alone. With `last=True`, they are written in any case if they
        are out of date.
        """
        self.flush_trials(self._changed)
        now = time.monotonic()
        due = self._stale and now > self._table_at + max(1.0, 20 * self.table_took_s)
        if due or (last and self._behind):
            self._retry(self.write_tables)
            self._stale, self._behind, self._table_at = False, False, time.monotonic()
            self.table_took_s = self._table_at - now

    def flush_ended(self) -> None:
        """Write info.json and results.csv of the trials that have ended and changed since the last call.

        Call this method during a replay, and `flush` after it. In the middle of a replay, most open trials have later
        events, so their files would be written twice.
        """
        self.flush_trials({name for name in self._changed if self._state.trials[name].ended})

    def flush_trials(self, names: Collection[str]) -> None:
        """Write info.json and results.csv of the trials in `names`, where these files are missing or out of date.

        The files of a trial are not written if all of this holds: the trial has ended, its name is in `elsewhere` (its
        files are in the object store), and the local folder has no info.json of it.
        """
        for name in list(names):
            self._changed.discard(name)
            trial, state = self._trials[name], self._state.trials[name]
            in_store = state.ended and name in self.elsewhere and not self._info_of(name).exists()
            if not in_store:
                self._retry(lambda trial=trial, state=state: self._write(trial, state))
            if state.ended and state.outcome != "crashed":
                del self._trials[name]

    def _info_of(self, name: str) -> Path:
        return self.folder / EXPERIMENTS / name / "info.json"

    def write_tables(self) -> None:
        """Write points.csv and trials.csv if they are missing or out of date."""
        for name, text in ((POINTS, points_text(self._state)), (TRIALS, trials_text(self._state, self._config))):
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != text.encode():
                replace_text(path, text)

    def _write(self, trial: _Trial, state: TrialState) -> None:
        """Write info.json and results.csv of a trial if they are missing or out of date. `state` is its TrialState."""
        folder = self.folder / EXPERIMENTS / state.name
        curve = folder / "results.csv"
        if state.ended and _events_of(folder / "info.json") == trial.events and _holds(curve, trial.curve):
            trial.due = False
            return
        self._write_curve(curve, trial, complete=state.ended)
        if trial.due:
            content = info_of(state, trial.points, self._config) | {"events": trial.events}
            write_info(folder, content, durable=state.ended)  # not fsynced before: the journal can restore it
            trial.due = False

    @staticmethod
    def _write_curve(path: Path, trial: _Trial, complete: bool) -> None:
        """Append the new rows of `trial.curve` to the results.csv at `path`.

        The first write of a driver replaces the file instead. If the trial has ended (`complete`), the file is replaced
        and fsynced.
        """
        if not trial.curve or (trial.written == len(trial.curve) and not complete):
            return
        if trial.written is None or complete or not path.is_file():
            make_folder(path.parent)
            replace_text(path, _csv(trial.curve, header=True), durable=complete)
        else:
            new, trial.written = trial.curve[trial.written :], None  # None: rewrite all if this write fails
            with path.open("a") as stream:
                stream.write(_csv(new, header=False))
        trial.written = len(trial.curve)


def replay(reading: Reading, log: StudyLog, tables: StudyTables) -> None:
    """Apply all events of a study's journal to the reducers of `log`, and write the tables that are out of date.

    `reading` iterates over the events of the journal. `tables` must be one of the reducers of `log`. Raise
    JournalError, which names file and line, if a line is invalid or its event contradicts the earlier ones.
    """
    n_events = itertools.count(1)

    def apply(event: Event) -> None:
        log.replay([event])
        if next(n_events) % REPLAY_CHUNK == 0:  # limits the memory for the curves and points of ended trials
            tables.flush_ended()

    reading.apply(apply)
    tables.flush()


def rebuild_tables(folder: Path, config: Mapping[str, Any], elsewhere: Collection[str] = ()) -> StudyState:
    """Restore the tables of the study in `folder` that are lost, damaged or out of date, and return the study's state.

    `config` is the flat configuration that the sampled values override. `elsewhere` holds the names of the trials with
    files in an object store: if such a trial has ended, its files are not restored in `folder`. Raise OSError if a
    table cannot be written, and JournalError if the journal is damaged.
    """
    log = StudyLog()
    tables = StudyTables(folder, log.state, config, Retry(lambda message: None, limit_s=0))
    tables.elsewhere = elsewhere
    log.attach(tables)
    replay(Reading(folder), log, tables)
    tables.flush(last=True)
    return log.state


def info_of(trial: TrialState, points: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of info.json of `trial`.

    `points` holds the measured networks of the trial with all fields of a point; in `trial.points`, confusion matrices
    and channel widths are left out. `config` is the flat configuration that the sampled values override.
    """
    position = {"stage": trial.stage, "epoch": trial.epoch, "epochs": trial.epochs}
    return {
        "trial_id": trial.name,
        "config_id": trial.config_id,
        "replicate": trial.replicate,
        "status": trial.status,
        "failure": trial.reason,
        "sampled": trial.values,
        "points": points,
        "last_result": position | trial.figures if trial.epochs else {},
        "epochs_repeated": trial.repeated,
        "config": dict(config) | trial.values | {"replicate": trial.replicate},
    }


def _events_of(info: Path) -> int | None:
    """Return how many events of its trial the info.json at `info` takes into account, according to its key `events`.

    Return None if the file is missing or damaged, or has no such key.
    """
    try:
        content = json.loads(info.read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("events") if isinstance(content, dict) else None


def _holds(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Return whether the results.csv at `path` contains exactly `rows`.

    If `rows` is empty, return True without looking at the file: a trial without a reported epoch has no results.csv.
    """
    if not rows:
        return True
    return path.is_file() and path.read_bytes() == _csv(rows, header=True).encode()


def _csv(rows: list[dict[str, Any]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
