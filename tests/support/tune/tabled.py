"""Studies whose tables are written, for the tests of `tune/reporting/tables.py`."""

import csv
import json
from pathlib import Path
from typing import Any

from tests.support.simulated import point
from tune.reporting.tables import CURVE, StudyTables, replay
from tune.study.events import (
    DriverStarted,
    EpochReported,
    Event,
    PointMeasured,
    TrialCreated,
    TrialEnded,
)
from tune.study.journal import Reading
from tune.study.log import StudyLog
from tune.study.retry import Retry
from tune.study.writer import Journal

OUTCOMES = {"t0000": "completed", "t0001": "stopped", "t0002": "failed", "t0003": "crashed", "t0004": None}
CONFIG = {"train.lr": 0.1, "train.epochs": 2, "replicate": 0}


def created(name: str, config_id: str | None = None, **more: Any) -> TrialCreated:
    values = {"train.lr": 0.01, "student.branches": ["3x3", "1x1"]}
    return TrialCreated(trial=name, config_id=config_id or name, replicate=0, params={}, values=values, **more)


def epoch(name: str, epochs: int, stage: int = 0, **figures: float) -> EpochReported:
    shared = {"val_macro_avg_acc": epochs / 10, "train_loss": 1 / 3}
    return EpochReported(trial=name, stage=stage, epoch=epochs, epochs=epochs, figures={**shared, **figures})


def measured(name: str, step: int = 0, accuracy: float = 0.5) -> PointMeasured:
    return PointMeasured(trial=name, point=point(step, accuracy, 2e6))


def every_outcome() -> list[Event]:
    """Return the events of one trial of each outcome and of a running one, each with two epochs and a point."""
    events: list[Event] = [DriverStarted(command="python tune/run.py")]
    for name, outcome in OUTCOMES.items():
        events += [created(name), epoch(name, 1), epoch(name, 2), measured(name)]
        if outcome:
            events.append(TrialEnded(trial=name, outcome=outcome, reason="none" if outcome == "failed" else None))  # type: ignore[arg-type]
    return events


def write_journal(study: Path, events: list[Event]) -> None:
    """Write `events` as a journal, with a segment for each driver."""
    begins = [i for i, event in enumerate(events) if i == 0 or isinstance(event, DriverStarted)]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        reading = Reading(study)
        list(reading)
        journal = Journal(study, reading.after)
        journal.append(tuple(events[begin:end]))
        journal.close()


class Live:
    """A driver that writes events and tables."""

    def __init__(self, study: Path):
        study.mkdir(exist_ok=True)
        self.study, self.log = study, StudyLog(lambda events: self.journal.append(events))
        self.tables = StudyTables(study, self.log.state, CONFIG, Retry(lambda message: None, limit_s=0))
        self.log.attach(self.tables)
        reading = Reading(study)
        replay(reading, self.log, self.tables)
        self.journal = Journal(study, reading.after)

    def add(self, *events: Event) -> None:
        self.log.add(*events)
        self.tables.flush()


def files(study: Path) -> dict[str, bytes]:
    """Return the tables of a study: name -> content."""
    found = [study / "points.csv", study / "trials.csv", *sorted((study / "experiments").rglob("*.*"))]
    return {str(path.relative_to(study)): path.read_bytes() for path in found if path.is_file()}


def info(study: Path, name: str) -> dict[str, Any]:
    return json.loads((study / "experiments" / name / "info.json").read_text())


def curve(study: Path, name: str) -> list[int]:
    with (study / "experiments" / name / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(list(row) == list(CURVE) for row in rows)
    return [int(row["epochs"]) for row in rows]
