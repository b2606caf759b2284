"""The tables of a study, updated while it runs: points.csv, and info.json and results.csv of each trial.

    tables = StudyTables(folder, state, config, Patience(warn))
    log.attach(tables)
    log.replay(...)
    tables.flush()                         # writes changed tables; cheap, called often

All tables follow from the journal, so the next driver restores a lost or damaged one.
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
from trainables.outputs.records import EXPERIMENTS, point_row, points_csv, write_info
from tune.study.events import EpochReported, Event, PointMeasured, TrialCreated, TrialEnded, TrialRetried
from tune.study.journal import Reading
from tune.study.log import StudyLog
from tune.study.state import StudyState, TrialState, is_first
from tune.study.waiting import Patience

CURVE = (
    *("stage", "epoch", "epochs", "train_loss", "val_loss", "val_macro_avg_acc", "val_ece", "train_macro_avg_acc"),
    *("macs", "params", "sparsity", "seconds"),
)  # columns of results.csv
POINTS = "points.csv"
REPLAY_CHUNK = 500  # number of events between two writes of tables during a replay


@dataclass
class _Trial:
    """The data that a trial's files need and that StudyState does not keep."""

    events: int = 0  # number of the trial's events, also stored in info.json when it is written
    curve: list[dict[str, Any]] = field(default_factory=list)  # rows of results.csv
    points: list[dict[str, Any]] = field(default_factory=list)  # with confusion matrices and widths
    written: int | None = None  # rows of results.csv that this driver has written; None: no row yet
    due: bool = False  # info.json must be written


class StudyTables:
    """Writes the tables of the study in `folder`; `config` is the configuration that all trials share."""

    def __init__(self, folder: Path, state: StudyState, config: Mapping[str, Any], patience: Patience):
        self.folder, self.table_took_s = folder, 0.0
        self._state, self._config, self._patience = state, config, patience
        self._trials: dict[str, _Trial] = {}  # open, crashed, or with unwritten files
        self._changed: set[str] = set()
        self._stale, self._table_at = True, 0.0  # state and time of points.csv
        self.elsewhere: Collection[str] = ()  # ended trials whose files are up to date in an object store

    def apply(self, event: Event) -> None:
        name = getattr(event, "trial", None)
        if name is None:
            return
        trial = self._trials.setdefault(name, _Trial())
        trial.events += 1
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
        """Write tables that changed since the last call. Writing points.csv takes at most a twentieth of the driver's
        time, except in the `last` call, which always writes it."""
        self.flush_trials(self._changed)
        now = time.monotonic()
        if self._stale and (last or now > self._table_at + max(1.0, 20 * self.table_took_s)):
            self._patience(self.write_points)
            self._stale, self._table_at = False, time.monotonic()
            self.table_took_s = self._table_at - now

    def flush_ended(self) -> None:
        """Write the files of ended trials only: during a replay an open trial may still end."""
        self.flush_trials({name for name in self._changed if self._state.trials[name].ended})

    def flush_trials(self, names: Collection[str]) -> None:
        """Write the files of the given trials."""
        for name in list(names):
            self._changed.discard(name)
            trial, state = self._trials[name], self._state.trials[name]
            in_store = state.ended and name in self.elsewhere and not self._info_of(name).exists()
            if not in_store:
                self._patience(lambda trial=trial, state=state: self._write(trial, state))
            if state.ended and state.outcome != "crashed":
                del self._trials[name]

    def _info_of(self, name: str) -> Path:
        return self.folder / EXPERIMENTS / name / "info.json"

    def write_points(self) -> None:
        """Write points.csv, unless it is up to date."""
        text = points_text(self._state)
        path = self.folder / POINTS
        if not path.is_file() or path.read_bytes() != text.encode():
            replace_text(path, text)

    def _write(self, trial: _Trial, state: TrialState) -> None:
        """Update the files of a trial."""
        folder = self.folder / EXPERIMENTS / state.name
        curve = folder / "results.csv"
        if state.ended and _events_of(folder / "info.json") == trial.events and _holds(curve, trial.curve):
            trial.due = False
            return
        self._write_curve(curve, trial, complete=state.ended)
        if trial.due:
            content = info_of(state, trial.points, self._config) | {"events": trial.events}
            write_info(folder, content, durable=state.ended)  # an open trial's can be restored from the journal
            trial.due = False

    @staticmethod
    def _write_curve(path: Path, trial: _Trial, complete: bool) -> None:
        """Append new rows to results.csv; replace the file the first time, and durably if the curve is `complete`."""
        if not trial.curve or (trial.written == len(trial.curve) and not complete):
            return
        if trial.written is None or complete or not path.is_file():
            make_folder(path.parent)
            replace_text(path, _csv(trial.curve, header=True), durable=complete)
        else:
            new, trial.written = trial.curve[trial.written :], None  # None: replace it after a partial write
            with path.open("a") as stream:
                stream.write(_csv(new, header=False))
        trial.written = len(trial.curve)


def replay(reading: Reading, log: StudyLog, tables: StudyTables) -> None:
    """Apply the journal `reading` to `log` and write the tables that are out of date. `tables` must be a reducer of
    `log`. JournalError names the line of an event that is not valid after the earlier ones."""
    n_events = itertools.count(1)

    def apply(event: Event) -> None:
        log.replay([event])
        if next(n_events) % REPLAY_CHUNK == 0:  # limits the memory for the content of info.json
            tables.flush_ended()

    reading.apply(apply)
    tables.flush()


def rebuild_tables(folder: Path, config: Mapping[str, Any], elsewhere: Collection[str] = ()) -> StudyState:
    """Restore tables that are lost, damaged or out of date; return the state of the study. `elsewhere` names ended
    trials whose files are in an object store and are not restored here. OSError if a table cannot be written."""
    log = StudyLog()
    tables = StudyTables(folder, log.state, config, Patience(lambda message: None, limit_s=0))
    tables.elsewhere = elsewhere
    log.attach(tables)
    replay(Reading(folder), log, tables)
    tables.flush(last=True)
    return log.state


def info_of(trial: TrialState, points: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of info.json. `points` include confusion matrices and widths; `config` is the configuration
    that all trials share."""
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


def points_text(state: StudyState) -> str:
    """Return the content of points.csv: one row per measured network, of trials of every status."""
    return points_csv(
        [
            {"trial_id": trial.name, "config_id": trial.config_id, "replicate": trial.replicate}
            | point_row(trial.name, trial.status, f"{EXPERIMENTS}/{trial.name}", point, trial.values)
            for trial in state.trials.values()
            for point in trial.points
        ]
    )


def _events_of(info: Path) -> int | None:
    """Return the number of events recorded in an info.json; None if it is missing or damaged."""
    try:
        content = json.loads(info.read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("events") if isinstance(content, dict) else None


def _holds(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Return whether a results.csv contains exactly these rows; a trial without an epoch has no file."""
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
