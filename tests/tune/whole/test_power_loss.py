"""A simulated power loss: each file of a killed study is cut to its fsynced part, and the study is resumed."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ascmodels.checkpoint import load_student
from tests.support.machines import PATIENCE_S, SMALL, SPACE, end, wait_until
from tests.support.paths import ROOT
from tune.study.journal import read_events, read_state

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def synced_sizes(log: Path) -> dict[Path, int]:
    """Return file -> bytes on disk. A renamed file counts only if its directory was fsynced after the rename."""
    sizes: dict[Path, int] = {}
    moved: dict[Path, dict[Path, int]] = {}  # directory -> its renames that are not on disk yet
    for line in log.read_text().splitlines():
        kind, first, second = line.split("\t")
        path = Path(first)
        if kind == "fsync":
            sizes[path] = int(second)
            for target, size in moved.pop(path, {}).items():
                sizes[target] = size
            continue
        target = Path(second)
        found = {p: n for p, n in sizes.items() if p == path or path in p.parents}
        for source, size in found.items():
            moved.setdefault(target.parent, {})[target / source.relative_to(path)] = size
            del sizes[source]
    return sizes


def cut(study: Path, sizes: dict[Path, int]) -> int:
    """Cut every file to its bytes on disk; return how many bytes were lost."""
    lost = 0
    for path in (p for p in study.rglob("*") if p.is_file() and not p.is_symlink()):
        size = path.stat().st_size
        size_on_disk = min(size, sizes.get(path.resolve(), 0))
        if size_on_disk < size:
            os.truncate(path, size_on_disk)
            lost += size - size_on_disk
    return lost


def rows(study: Path) -> list[dict[str, str]]:
    """Return the rows of points.csv without the time of the measurement, which differs after a kill."""
    with (study / "points.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "search_s"} for row in csv.DictReader(stream)]


def test_nothing_that_was_acknowledged_is_lost(tiny_tau: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    log = tmp_path / "fsyncs"

    def start(name: str) -> subprocess.Popen[str]:
        words = ["--space", str(tmp_path / "s.yaml"), "--name", name, "--resume", "auto", "--num-samples", "3"]
        words += ["--storage", str(tmp_path / "runs"), "--max-concurrent", "1", f"--dataset_dir={tiny_tau}", *SMALL]
        environment = os.environ | {
            **{"PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'power_cut'}{os.pathsep}{ROOT}", "FSYNC_LOG": str(log)},
            **{"WANDB_MODE": "disabled", "COLUMNS": "160"},
        }
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tune" / "run.py"), *words, "train.epochs=4"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    through = start("through")
    output, _ = through.communicate(timeout=PATIENCE_S)
    assert through.returncode == 0, output
    expected = rows(tmp_path / "runs" / "through")

    study = tmp_path / "runs" / "cut"
    driver = start("cut")
    wait_until(lambda: (study / "experiments" / "t0001" / "step0" / "student.json").exists(), driver)
    end(driver)
    sizes = synced_sizes(log)
    before = list(read_events(study))
    assert cut(study, sizes) > 10_000, "Ray's copies of the checkpoints are not fsynced"
    after = list(read_events(study))
    assert after == before[: len(after)] and len(before) - len(after) <= 2, "the last append may have been under way"
    for trial in read_state(study).trials.values():
        for point in trial.points:
            load_student(study / "experiments" / trial.name / point["checkpoint"])
    resumed = start("cut")
    output, _ = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 0, output
    assert list(read_events(study))[: len(after)] == after
    assert rows(study) == expected
