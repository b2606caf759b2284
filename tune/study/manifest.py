"""Read and write the manifest of a study (`study.json`), and decide whether the study is complete.

<study>/study.json            options, data, code, status and counts of the study (analysis/manifest.py)
<study>/journal/              every event (tune/study/journal.py)
<study>/points.csv            one row per measured network
<study>/experiments/<trial>/  info.json, results.csv (learning curves), step0/, step1/ ...: the deployed networks
<study>/ray/<run>/<trial>/    checkpoints of the trial, for each driver that ran it
"""

import json
from pathlib import Path

from analysis.manifest import ResultsError, StudyManifest
from analysis.manifest import read_manifest as read_file
from data.files import make_folder, replace_text
from tune.study.state import StudyState

NAME = "study.json"


class StudyError(RuntimeError):
    """A study that cannot be started, found or continued."""


def read_manifest(folder: Path) -> StudyManifest:
    """Return the manifest of the study in `folder`; StudyError if it is missing or damaged."""
    if not (folder / NAME).is_file():
        raise StudyError(f"no study in {folder}: {NAME} is missing; expected a folder such as runs/<name>")
    try:
        return read_file(folder / NAME)
    except ResultsError as error:
        raise StudyError(str(error)) from error


def write_manifest(folder: Path, manifest: StudyManifest) -> None:
    """Replace `study.json`; it is on disk (fsynced) when this returns."""
    make_folder(folder)
    replace_text(folder / NAME, json.dumps(manifest.to_json(), indent=1))


def is_complete(manifest: StudyManifest, state: StudyState) -> bool:
    """Return whether all trials have ended and no further one is needed or can be drawn from the space."""
    return state.n_ended == len(state.trials) and (state.exhausted or state.n_ended >= manifest.asked.n_trials)
