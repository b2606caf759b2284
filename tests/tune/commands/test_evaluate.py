"""Evaluation on the test split: each network once, means in the report, full and read-only disks."""

import csv
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from analysis.manifest import Baseline, Prepared, Progress, Requested, Resolved, StudyManifest
from analysis.results import load_study
from ascmodels.checkpoint import save_student
from ascmodels.nessi import get_torch_size
from ascmodels.students import build_student
from search_spaces import Space, space_from_dict
from tests.support.driven_study import SMALL, Driver, measured
from trainables.config.compose import compose
from trainables.config.schema import TrialConfig
from trainables.engine.deployment import describe_use
from tune.arguments import parser
from tune.commands.driving import prepared
from tune.evaluate import main
from tune.prepare import prepare
from tune.run import main as run_main
from tune.search.optuna_study import OBJECTIVES
from tune.study.manifest import read_manifest, write_manifest

pytestmark = pytest.mark.slow  # decodes the tiny data set

SPACE = space_from_dict({"name": "s", "parameters": {"train.lr": {"uniform": [0.001, 0.01]}}})
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    cache = tmp_path_factory.mktemp("cache")
    places = (f"data.dataset_dir='{tiny_tau}'", f"data.cache_dir='{cache}'")
    return compose([*places, *SMALL, "distill.kd_alpha=1", "train.device=cpu"])


class Networks:
    """A complete study of untrained networks, which differ by their seed; later ones have better recorded figures."""

    def __init__(self, folder: Path, config: TrialConfig, space: Space = SPACE):
        self.folder, self.config, self.space, self._n = folder, config, space, 0
        requested = Requested(name=folder.name, num_samples=0, scheduler="fifo")
        resolved = Resolved(
            folder=str(folder), space=space.as_dict(), config=config.flat(), objectives=OBJECTIVES, code={"a.py": "0"}
        )
        baseline = Prepared(baseline=Baseline("logistic regression", 0.5))
        write_manifest(folder, StudyManifest(requested, resolved, baseline, Progress(status="complete")))

    def add(self, *names: str) -> None:
        """Add trials with one network each; t0000r1 is the first replicate of t0000."""
        driver = Driver(self.folder, self.space, self.config.flat())
        for name in names:
            torch.manual_seed(self._n)
            student = build_student(self.config.student, fused=True).eval()
            save_student(self.folder / "experiments" / name / "step0", student, describe_use(self.config))
            macs, params = get_torch_size(student, (1, 1, self.config.frontend.n_mels, self.config.frontend.frames))
            first, _, replicate = name.partition("r")
            driver.create(name, config_id=first, replicate=int(replicate or 0))
            point = measured(0, 0.4 + 0.01 * self._n, macs, params=params, bytes_fp16=2 * params)
            driver.epoch(name, 1)
            driver.point(name, point)
            driver.end(name)
            self._n += 1
        driver.close()
        manifest = read_manifest(self.folder)
        write_manifest(self.folder, manifest.changed(num_samples=self._n))


@pytest.fixture
def study(tmp_path: Path, config: TrialConfig) -> Path:
    """Return a study of two networks that has not been evaluated."""
    networks = Networks(tmp_path / "runs" / "study", config)
    networks.add("t0000", "t0001")
    return networks.folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as handle:
        return list(csv.DictReader(handle))


def accuracies(folder: Path) -> dict[str, float]:
    return {row["trial_id"]: float(row["test_macro_avg_acc"]) for row in rows(folder / "test.csv")}


def test_every_seed_of_the_front_is_measured_once(config, tmp_path, monkeypatch, capsys):
    """First with one seed for each configuration, in an object store; then with replicates that were added later."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "work"))
    networks = Networks(tmp_path / "study", config)
    networks.add("t0000", "t0001")
    folder = networks.folder
    assert main([f"file://{folder}"]) == 0
    assert list(accuracies(folder)) == ["t0001"]  # the better of two equally large networks
    before = accuracies(folder)["t0001"]

    networks.add("t0000r1", "t0002")
    assert main([str(folder)]) == 0
    assert load_study(folder).replicated
    assert "opened for 2 network(s) of 1 point(s)" in capsys.readouterr().out
    found = accuracies(folder)
    assert list(found) == ["t0001", "t0000", "t0000r1"] and found["t0001"] == before
    seeds = [found["t0000"], found["t0000r1"]]
    losses = {row["trial_id"]: row["test_loss"] for row in rows(folder / "test.csv")}
    assert len(set(losses.values())) == 3  # the weights differ
    front = rows(folder / "front.csv")
    assert [(row["trial_id"], row["n_seeds"], row["test_n_seeds"]) for row in front] == [("t0000", "2", "2")]
    assert float(front[0]["test_macro_avg_acc"]) == pytest.approx(np.mean(seeds))
    assert float(front[0]["test_macro_avg_acc_std"]) == pytest.approx(np.std(seeds, ddof=1))

    opened = read_manifest(folder).progress.test_opened
    assert main([str(folder)]) == 0
    assert "measured on the test split before" in capsys.readouterr().out
    assert read_manifest(folder).progress.test_opened == opened and len(opened) == 2


@pytest.mark.parametrize("status", ["running", "interrupted", "extended", "new"])
def test_the_split_stays_closed_until_the_search_is_complete(study, status, capsys):
    write_manifest(study, read_manifest(study).changed(status=status))
    assert main([str(study)]) == 2
    assert status in capsys.readouterr().out
    assert not (study / "test.csv").exists() and read_manifest(study).progress.test_opened == ()


@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied"])
def test_a_lost_table_is_rebuilt(study, damage):
    points = study / "points.csv"
    original = points.read_bytes()
    points.unlink()
    if damage != "deleted":
        points.write_bytes(original[:-40] if damage == "cut" else b"")
    assert main([str(study)]) == 0
    assert points.read_bytes() == original and list(accuracies(study)) == ["t0001"]


def test_the_baselines_test_accuracy_is_kept_and_restored(study, config):
    """An extended or confirmed study is prepared again, with the same data."""
    assert main([str(study)]) == 0
    evaluated = read_manifest(study)
    assert evaluated.prepared.baseline is not None
    accuracy = evaluated.prepared.baseline.test_macro_avg_acc
    assert accuracy is not None and 0 <= accuracy <= 1
    prepare(config, SPACE, QUIET)  # so that the command below finds all in the cache
    options = parser("").parse_args(["--name", "study", "--extend", "1"])
    again = prepared(study, evaluated, SPACE, options, QUIET)
    assert again.prepared.baseline is not None and again.prepared.baseline.test_macro_avg_acc == accuracy
    assert again.prepared.baseline.val_macro_avg_acc is not None and again.prepared.dataset.fingerprint
    missing = Baseline(evaluated.prepared.baseline.name, evaluated.prepared.baseline.val_macro_avg_acc, None)
    write_manifest(study, evaluated.changed(baseline=missing))
    measured_before = (study / "test.csv").read_bytes()
    assert main([str(study)]) == 0
    assert read_manifest(study).prepared.baseline == evaluated.prepared.baseline
    assert (study / "test.csv").read_bytes() == measured_before


def test_evaluating_again_writes_a_missing_report(study):
    assert main([str(study)]) == 0
    before = {name: (study / name).read_bytes() for name in ("test.csv", "front.csv", "report.html", "front.png")}
    opened = read_manifest(study).progress.test_opened
    for name in ("front.csv", "report.html", "front.png"):
        (study / name).unlink()
    assert main([str(study)]) == 0
    assert (study / "front.csv").read_bytes() == before["front.csv"] and (study / "front.png").is_file()
    assert (study / "report.html").stat().st_size == len(before["report.html"])
    assert (study / "test.csv").read_bytes() == before["test.csv"]
    assert read_manifest(study).progress.test_opened == opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 12 MB that a test may fill or make read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize("hindered", [full, read_only])
def test_a_disk_that_cannot_be_written(study, small_disk, hindered, capsys):
    """The command ends with status 2 and one line; repeated later, it completes the rest without measuring twice."""
    folder = Path(shutil.copytree(study, small_disk / "study"))
    with hindered(small_disk):
        assert main([str(folder)]) == 2
    error = capsys.readouterr().out.strip().splitlines()[-1]
    assert error.startswith("error:")
    assert not (folder / "test.csv").exists()
    assert main([str(folder)]) == 0
    measured_before, opened = (folder / "test.csv").read_bytes(), read_manifest(folder).progress.test_opened
    assert len(opened) == 1
    for name in ("report.html", "front.csv", "front.png"):
        (folder / name).unlink()
    capsys.readouterr()
    with hindered(small_disk):
        assert main([str(folder)]) == 2
        assert capsys.readouterr().out.strip().splitlines()[-1].startswith("error:")
    assert not (folder / "report.html").exists()
    assert main([str(folder)]) == 0
    assert (folder / "report.html").stat().st_size > 10_000 and rows(folder / "front.csv")
    assert (folder / "test.csv").read_bytes() == measured_before
    assert read_manifest(folder).progress.test_opened == opened


def test_the_report_of_a_complete_study_on_a_full_disk(study, small_disk, capsys):
    """`run.py --resume` behaves in the same way."""
    folder = Path(shutil.copytree(study, small_disk / "study"))
    words = ["--resume", "--name", "study", "--storage", str(small_disk)]
    with full(small_disk):
        assert run_main(words) == 2
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("error:")
    assert run_main(words) == 0
    assert (folder / "report.html").stat().st_size > 10_000
