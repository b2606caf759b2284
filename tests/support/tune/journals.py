"""Events and journals for the tests of `tune/study/journal.py`."""

import json
from pathlib import Path
from typing import Any

from tune.study.events import (
    DriverStarted,
    EpochReported,
    TrialCreated,
)
from tune.study.journal import Reading, read_events, segments
from tune.study.writer import Journal

TIME = {"time": "2026-01-05T09:30:00+00:00"}


def created(name: str = "t0000") -> TrialCreated:
    return TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={})


def epoch(epochs: int, name: str = "t0000") -> EpochReported:
    return EpochReported(trial=name, stage=0, epoch=epochs, epochs=epochs, figures={"val_macro_avg_acc": epochs / 10})


def started(command: str) -> DriverStarted:
    return DriverStarted(command=command)


def commands(study: Path) -> list[str]:
    """Return the commands of the DriverStarted events in the journal, in order."""
    return [event.command for event in read_events(study) if isinstance(event, DriverStarted)]


def opened(study: Path, **options: Any) -> Journal:
    """Return the journal of a new driver, which has read the events of its predecessors."""
    reading = Reading(study)
    list(reading)
    return Journal(study, reading.after, **options)


def newest(study: Path) -> Path:
    return segments(study)[-1].path


def names(study: Path) -> list[str]:
    return [segment.path.name for segment in segments(study)]


OLD = [
    {"event": "run", "command": "python tune/run.py"},
    {"event": "trial", "trial": "t0000", "config_id": "t0000", "replicate": 0, "params": {}, "values": {}},
    {"event": "result", "trial": "t0000", "stage": 0, "epoch": 1, "epochs": 1, "done": False, "finished": False},
]


def write_old(study: Path) -> None:
    """Write a journal of format 1 by two drivers, both of which were killed in the middle of a line."""
    (study / "journal").mkdir(parents=True)
    lines = [json.dumps(TIME | event) + "\n" for event in OLD]
    (study / "journal" / "000.jsonl").write_text("".join(lines) + lines[-1][:30])
    crashed = {"event": "end", "trial": "t0000", "status": "failed", "failure": "the node died"}
    again = [{"event": "run", "command": "again"}, crashed]
    lines = [json.dumps(TIME | event) + "\n" for event in again]
    (study / "journal" / "001.jsonl").write_text("".join(lines) + lines[-1][:10])
