"""Read and write the manifest of a study (`study.json`), and decide whether the study is complete.

<study>/study.json            options, data, code, status and numbers of trials (analysis/manifest.py)
<study>/journal/              all events of the study (tune/study/journal.py)
<study>/points.csv            one row per measured network
<study>/trials.csv            one row per trial (tune/reporting/csv_texts.py)
<study>/experiments/<trial>/  info.json, results.csv (learning curves), step0/, step1/ ...: the deployed networks
<study>/ray/<run>/<trial>/    checkpoints of the trial; each driver has a folder <run> of its own
"""

import json
from pathlib import Path

from analysis.manifest import StudyManifest, manifest_of
from analysis.typed_json import ResultsError
from data.files import make_folder, parse_json, replace_text
from tune.study.state import StudyState

NAME = "study.json"


class StudyError(RuntimeError):
    """Raised if a study cannot be found, started or continued; the message is shown to the user."""


def read_manifest(folder: Path) -> StudyManifest:
    """Return the manifest of the study in `folder`. Raise StudyError if the manifest is missing or damaged."""
    if not (folder / NAME).is_file():
        raise StudyError(
            f"{folder} is not the folder of a study ({NAME} is missing); correct the path, for example to runs/<name>"
        )
    return parse_manifest((folder / NAME).read_bytes(), folder / NAME)


def parse_manifest(content: bytes, where: Path | str) -> StudyManifest:
    """Return the manifest in `content`, which was read from the file `where`. Raise StudyError if it is damaged."""
    try:
        return manifest_of(parse_json(content, where), where)
    except (ResultsError, ValueError) as error:
        raise StudyError(str(error)) from error


def write_manifest(folder: Path, manifest: StudyManifest) -> None:
    """Write `manifest` to `study.json` in `folder` and fsync it. An existing file is replaced atomically."""
    make_folder(folder)
    replace_text(folder / NAME, json.dumps(manifest.to_json(), indent=1))


def is_complete(manifest: StudyManifest, state: StudyState) -> bool:
    """Return whether a study is complete: all its trials have ended, and no further trial is to be started.

    No trial is started if the requested number is reached, or if the newest driver found no further configuration in
    the search space. `state` is the state of the study after all events of its journal.
    """
    return state.n_ended == len(state.trials) and (state.exhausted or state.n_ended >= manifest.requested.n_trials)
