"""Drivers without Ray that write the journal of a study, for tests of object stores."""

from pathlib import Path

from tune.study.events import DriverStarted, TrialCreated
from tune.study.journal import Reading
from tune.study.state import StudyState
from tune.study.writer import Journal

SECRET = "not-a-real-secret"


def trial(name: str) -> TrialCreated:
    return TrialCreated(trial=name, config_id=name, replicate=0, params={}, values={})


def drive(folder: Path, *names: str) -> Journal:
    """Write the start of a driver and the given trials to the journal in `folder`; return the open journal."""
    reading = Reading(folder)
    reading.apply(StudyState().apply)
    journal = Journal(folder, reading.after)
    journal.append((DriverStarted(command=""), *map(trial, names)))
    return journal
