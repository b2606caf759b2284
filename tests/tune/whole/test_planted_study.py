"""Pickles in every folder of a study on a disk, of its shared dense phases and of its cache; kill and resume.

The same for an object store: test_object_store_drivers.py.
"""

import json
import pickle
import signal
import time
from pathlib import Path

import pytest

from tests.support.data.planted import NAMES, bomb, plant
from tests.support.machines import PATIENCE_S, end_all
from tests.support.tune.typed_studies import Studies

# the trials differ only in pruning, so they share a dense phase
SPACE = (
    "base: [student.base_channels=8, distill.kd_alpha=1]\n"
    "parameters:\n  prune.ratios: {choice: [[0.1], [0.2], [0.3], [0.4], [0.5]]}\n"
)
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_no_planted_pickle_runs_when_a_killed_study_is_resumed(
    tiny_tau: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_OF_PLANTED_PICKLES", str(tmp_path))
    studies, mark = Studies(tiny_tau, tmp_path / "studies"), tmp_path / "exploded"
    space = tmp_path / "s.yaml"
    space.write_text(SPACE)
    config = [word for word in studies.config if not word.startswith("teacher.")]
    options = ("--space", str(space), "--num-samples", "3", "--max-concurrent", "1", "--scheduler", "fifo")
    options += ("--checkpoint-interval", "0")
    killed = studies.start("--name", "x", *options, *config)
    study, until = studies.folder / "x", time.monotonic() + PATIENCE_S
    while len(list(study.glob("experiments/*/step*/student.json"))) < 2:
        assert killed.poll() is None and time.monotonic() < until, killed.communicate()[0]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    end_all(f"TEST_OF_PLANTED_PICKLES={tmp_path}")  # a trial that outlives its driver deletes older checkpoints
    (checkpoint, *_) = study.glob("ray/run*/t*/checkpoint_*")
    for run in (checkpoint.parents[1], checkpoint.parents[2] / "run999"):  # also newer ones than the newest
        (run / checkpoint.parent.name / "checkpoint_999999").mkdir(parents=True)
    states = list(studies.folder.rglob("state-*/seal.json"))
    caches = list(studies.folder.rglob("waveforms-*/manifest.json"))
    assert states and caches  # the shared dense phases and the cache are planted, too
    assert plant([studies.folder], mark) > 20
    for folder in (study, states[0].parent, caches[0].parent, checkpoint):
        assert all((folder / name).is_file() for name in NAMES)
    resumed = studies.start("--resume", "--name", "x")
    output, _ = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 0, output
    assert json.loads((study / "study.json").read_text())["trials"]["complete"] == 3
    assert not mark.exists()
    pickle.loads(bomb(mark))  # loading one does run it
    assert mark.exists()
