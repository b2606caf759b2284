"""The manifest of a study (`study.json`): read, written, and asked whether the study is complete.

<study>/study.json            what was asked, on what data, by which code; status and counts (analysis/manifest.py)
<study>/journal/              every event (tune/study/journal.py)
<study>/points.csv            one row a measured network
<study>/experiments/<trial>/  info.json, results.csv (learning curves), step0/, step1/ ...: the deployed networks
<study>/ray/<run>/<trial>/    checkpoints, of each driver that ran the trial
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
    """The manifest of the study in `folder`; StudyError when there is none or it is damaged."""
    if not (folder / NAME).is_file():
        raise StudyError(f"no study in {folder}: {NAME} is missing")
    try:
        return read_file(folder / NAME)
    except ResultsError as error:
        raise StudyError(str(error)) from error


def write_manifest(folder: Path, manifest: StudyManifest) -> None:
    """Replace `study.json`; on disk when this returns."""
    make_folder(folder)
    replace_text(folder / NAME, json.dumps(manifest.to_json(), indent=1))


def is_complete(manifest: StudyManifest, state: StudyState) -> bool:
    """Whether all trials have ended, or those that the space had to give."""
    return state.n_ended == len(state.trials) and (state.exhausted or state.n_ended >= manifest.asked.n_trials)
