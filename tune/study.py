"""A study's folder: its manifest and its lock.

<study>/study.json            what was asked, on what data, by which code; status and counts
<study>/journal/              every event; see tune/journal.py
<study>/points.csv            one row a measured network
<study>/experiments/<trial>/  info.json, results.csv (learning curves), step0/, step1/ ...: the deployed networks
<study>/ray/<run>/<trial>/    checkpoints, of each driver that ran the trial
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.files import locked, replace_text
from tune.journal import StudyLog


class StudyError(RuntimeError):
    """A study that cannot be started, found or continued."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """`study.json` of a study's folder; StudyError when there is none or it is damaged."""
    try:
        return json.loads((folder / "study.json").read_text())
    except FileNotFoundError as error:
        raise StudyError(f"no study in {folder}: study.json is missing") from error
    except json.JSONDecodeError as error:
        raise StudyError(f"{folder / 'study.json'} is damaged: {error}") from error


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    replace_text(folder / "study.json", json.dumps(manifest, indent=1))


def lock_of(folder: Path) -> Path:
    """The file that a driver locks."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a study, whose folder need not exist yet; StudyError when another driver runs it."""
    try:
        with locked(lock_of(folder), wait=False):
            yield
    except BlockingIOError as error:
        raise StudyError(f"the study in {folder} is being run by another process; wait for it or stop it") from error


def n_trials(manifest: dict[str, Any]) -> int:
    """How many trials the study asks for: the configurations, each with its seeds, and the confirmations."""
    return manifest["num_samples"] * manifest.get("seeds_per_config", 1) + len(manifest.get("confirmations", ()))


def is_complete(manifest: dict[str, Any], log: StudyLog) -> bool:
    """Whether all trials have ended, or those that the space had to give."""
    return log.n_ended == len(log.trials) and (log.exhausted or log.n_ended >= n_trials(manifest))
