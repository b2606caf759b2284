"""A study whose data change between two drivers is refused with the changes, or continued with a record of them."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from analysis.manifest import StudyManifest
from analysis.outputs import front_table
from analysis.results import load_study
from data.tau import DatasetError
from search_spaces import space_from_dict
from tests.support.driven_study import SMALL, Commands
from tests.support.paths import ROOT
from trainables.config.schema import TrialConfig
from tune.arguments import parser
from tune.commands.driving import prepared
from tune.prepare import prepare
from tune.study.journal import read_state
from tune.study.manifest import read_manifest, write_manifest

QUIET = Console(quiet=True)
SPACE = "base: [student=cp_mobile, student.base_channels=8]\nparameters:\n  train.lr: {uniform: [0.001, 0.01]}\n"


@pytest.fixture
def own_tau(tiny_tau: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set that a test may change."""
    return Path(shutil.copytree(tiny_tau, tmp_path / "tau"))


@pytest.fixture
def space(tmp_path: Path) -> str:
    """Return a space without a teacher."""
    path = tmp_path / "rates.yaml"
    path.write_text(SPACE)
    return str(path)


def split_file(root: Path) -> Path:
    return root / "split_setup" / "split100.csv"


def change_sound(root: Path) -> None:
    """Give each clip the sound of the next clip in the list."""
    names = sorted((root / "audio").glob("*.wav"))
    first = names[0].read_bytes()
    for this, following in itertools.pairwise(names):
        this.write_bytes(following.read_bytes())
    names[-1].write_bytes(first)


def change_labels(root: Path) -> None:
    """Exchange the labels of two clips of different scenes, in both tables."""
    lines = split_file(root).read_text().splitlines()
    (a, first), (b, second) = (lines[i].split("\t") for i in (2, -1))
    assert first != second
    for path in (split_file(root), root / "meta.csv"):
        text = path.read_text().replace(f"{a}\t{first}", f"{a}\t{second}")
        path.write_text(text.replace(f"{b}\t{second}", f"{b}\t{first}"))


def remove_lines(root: Path) -> None:
    """Remove the second segment of every third location from the split."""
    path = split_file(root)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for i, line in enumerate(lines) if i % 12 != 2))


def break_a_file(root: Path) -> None:
    """Damage a clip, which data.skip_broken then leaves out."""
    name = split_file(root).read_text().splitlines()[2].split("\t")[0]
    soundfile.write(root / name, np.zeros((44_100, 2)), 44_100, subtype="PCM_24")


class Killed:
    """A study as a driver leaves it that is killed after its preparation; everything runs in this process."""

    def __init__(self, commands: Commands, space: str, *words: str):
        self.commands = commands
        self.folder = commands.start("x", *words, "distill.kd_alpha=1", space=space)
        manifest = read_manifest(self.folder)
        self.space = space_from_dict(manifest.resolved.space)
        self.fill_cache(manifest)
        write_manifest(self.folder, self.prepared())

    def fill_cache(self, manifest: StudyManifest) -> None:
        """Compute the baseline of the data as they are, so that no Ray is started for it."""
        prepare(TrialConfig.from_flat(manifest.resolved.config), self.space, QUIET)

    def prepared(self, *words: str) -> StudyManifest:
        options = parser("").parse_args(["--resume", "--name", "x", *words])
        return prepared(self.folder, read_manifest(self.folder), self.space, options, QUIET)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_sound, ["sound"]),
        (change_labels, ["labels"]),
        (remove_lines, ["clips of the split", "50 before"]),
        (break_a_file, ["skipped files", "none before", "1 ("]),
    ],
)
def test_changed_data_are_refused_and_named(
    change: Callable[[Path], None], named: list[str], own_tau: Path, tmp_path: Path, space: str
) -> None:
    study = Killed(Commands(tmp_path / "runs", own_tau), space, "data.skip_broken=true")
    manifest = read_manifest(study.folder)
    assert study.prepared() == manifest, "nothing has changed yet"
    change(own_tau)
    before = (study.folder / "study.json").read_bytes()
    baselines = len(list((tmp_path / "runs" / "cache").glob("*baseline*")))
    with pytest.raises(DatasetError) as error:
        study.prepared()
    for text in (*named, "--allow-changes"):
        assert text in str(error.value)
    assert (study.folder / "study.json").read_bytes() == before
    assert len(list((tmp_path / "runs" / "cache").glob("*baseline*"))) == baselines, "nothing was computed"
    study.fill_cache(manifest)
    accepted = study.prepared("--allow-changes")
    (what,) = [change.what for change in accepted.progress.changes]
    assert all(text in what for text in named)
    assert accepted.prepared.dataset.fingerprint != manifest.prepared.dataset.fingerprint
    write_manifest(study.folder, accepted)
    assert named[0] in printed(study.folder), "the report says so"
    assert study.prepared() == accepted, "the next resume compares with the data as they are now"


def printed(folder: Path) -> str:
    """Return the table that the command prints at its end."""
    text = StringIO()
    Console(width=1000, file=text).print(front_table(load_study(folder)))
    return text.getvalue()


@pytest.mark.slow
def test_another_hold_out_is_refused(own_tau: Path, tmp_path: Path, space: str) -> None:
    """An edited study.json may name another hold-out. (On the command line it is refused as a changed option.)"""
    study = Killed(Commands(tmp_path / "runs", own_tau), space)
    manifest = read_manifest(study.folder)
    write_manifest(study.folder, manifest.changed(config=manifest.resolved.config | {"data.validation_share": 0.4}))
    with pytest.raises(DatasetError) as error:
        study.prepared()
    assert all(text in str(error.value) for text in ("data.validation_share", "0.2", "0.4"))


@pytest.mark.slow
def test_a_moved_data_set_is_the_same_data(own_tau: Path, tmp_path: Path, space: str) -> None:
    commands = Commands(tmp_path / "runs", own_tau)
    study = Killed(commands, space)
    before = read_manifest(study.folder)
    own_tau.rename(tmp_path / "moved")
    moved, goes_on = commands("--resume", "--name", "x", f"--dataset_dir={tmp_path / 'moved'}")
    assert goes_on
    write_manifest(study.folder, moved)
    assert study.prepared().prepared.dataset.fingerprint == before.prepared.dataset.fingerprint


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_study_whose_sound_changed(own_tau: Path, tmp_path: Path, space: str) -> None:
    """The complete command: one trial, a kill, changed sound; it is refused, then allowed."""
    storage = tmp_path / "runs"
    words = [f"--dataset_dir={own_tau}", *SMALL, "distill.kd_alpha=1", "train.epochs=1", "train.batch_size=16"]

    def command(*more: str) -> tuple[int, str]:
        line = [sys.executable, "tune/run.py", "--storage", str(storage), "--name", "x", *more]
        environment = os.environ | {"COLUMNS": "160"}
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = command("--space", space, "--num-samples", "1", *words)
    assert code == 0, text
    folder = storage / "x"
    manifest = read_manifest(folder)
    assert manifest.prepared.dataset.fingerprint and manifest.prepared.baseline is not None
    write_manifest(folder, manifest.changed(status="running", num_samples=2))  # like a killed study
    change_sound(own_tau)
    before = (folder / "study.json").read_bytes(), (folder / "points.csv").read_bytes()
    code, text = command("--resume")
    assert code == 2 and "sound" in text and "Traceback" not in text
    assert ((folder / "study.json").read_bytes(), (folder / "points.csv").read_bytes()) == before
    code, text = command("--resume", "--allow-changes")
    assert code == 0, text
    after = read_manifest(folder)
    assert after.progress.status == "complete" and len(read_state(folder).trials) == 2
    (what,) = [change.what for change in after.progress.changes]
    assert "sound" in what and what.splitlines()[0] in (folder / "report.html").read_text().replace("&#x27;", "'")
    assert after.prepared.baseline is not None
    assert after.prepared.baseline.val_macro_avg_acc != manifest.prepared.baseline.val_macro_avg_acc
