"""Studies of an earlier version (journal and study.json of format 1) are read, reported, evaluated, continued.

tests/fixtures/studies_format1.tar.xz contains the studies `complete` and `open` (killed in its third trial) and their
space. The data set is `tests.support.tau.make_tau` with the default seed. `open` has the seed of `complete`, so its
trials have the same figures.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from analysis.front import pareto_points
from analysis.results import MOMENT, load_study
from tests.support.paths import ROOT
from tune.evaluate import main as evaluate
from tune.run import main as run
from tune.status import main as status
from tune.study.events import KINDS
from tune.study.journal import read_events, read_state
from tune.study.manifest import read_manifest

ARCHIVE = ROOT / "tests" / "fixtures" / "studies_format1.tar.xz"
JOURNAL = Path("journal", "000.jsonl")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Return the folder with both studies, as the earlier version left them."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    return tmp_path / "runs"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as handle:
        return list(csv.DictReader(handle))


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert status([str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_event_of_format_1_becomes_a_typed_one(storage: Path) -> None:
    """The expected counts are taken from the old lines."""
    for name in ("complete", "open"):
        old = [json.loads(line) for line in (storage / name / JOURNAL).read_text().splitlines()]
        events = [event.kind for event in read_events(storage / name)]
        results = [line for line in old if line["event"] == "result"]
        failures = [line for line in results if line.get("failure")]
        assert events.count("epoch_reported") == len(results) - len(failures)
        assert events.count("point_measured") == sum("point" in line for line in results)
        assert events.count("trial_ended") == sum(line["done"] for line in results)
        assert events.count("trial_created") == sum(line["event"] == "trial" for line in old)
        assert set(events) <= set(KINDS)


def test_status_reads_both(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(storage)
    complete = shown(storage / "complete", capsys)
    ended = {"complete": 3, "stopped early": 2, "failed": 1}
    assert complete["trials"] == {"asked": 6, "ended": 6, **ended} and complete["running"] == []
    assert "the loss is nan" in complete["failed"]["t0004"]
    assert [(p["trial_id"], p["step"]) for p in complete["front"]] == [
        (row["trial_id"], int(row["step"])) for row in rows(storage / "complete" / "front.csv")
    ]
    unfinished = shown(storage / "open", capsys)
    ended = {"complete": 1, "stopped early": 1, "running": 1}
    assert unfinished["trials"] == {"asked": 6, "ended": 2, **ended}
    assert [(t["trial"], t["stage"], t["epoch"]) for t in unfinished["running"]] == [("t0002", 0, 7)]
    assert files_of(storage) == before


def test_the_state_agrees_with_the_tables_of_the_earlier_version(storage: Path) -> None:
    folder = storage / "complete"
    state = read_state(folder)
    for name, trial in state.trials.items():
        info = json.loads((folder / "experiments" / name / "info.json").read_text())
        assert (trial.status, trial.reason, trial.values) == (info["status"], info["failure"], info["sampled"])
        assert [p["step"] for p in trial.points] == [p["step"] for p in info["points"]]
        assert trial.repeated == info["epochs_repeated"]
    assert state.counts() == read_manifest(folder).progress.trials


def as_before(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return `table` without the columns that the earlier version did not write."""
    assert all(float(row["search_s"]) >= 0 and int(row["search_epochs"]) > 0 for row in table)
    return [{column: value for column, value in row.items() if column not in MOMENT} for row in table]


@pytest.mark.slow
def test_a_complete_study_is_reported_and_its_test_split_opened(
    storage: Path, tiny_tau: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = storage / "complete"
    before = files_of(folder)
    front = rows(folder / "front.csv")
    words = ["--resume", "--name", "complete", "--storage", str(storage)]
    assert run(words) == 0
    assert run([*words, f"--dataset_dir={tiny_tau}"]) == 0  # its data set was in another place
    assert as_before(rows(folder / "front.csv")) == front and (folder / "report.html").is_file()
    old = list(csv.DictReader(io.StringIO(before["points.csv"].decode())))
    assert as_before(rows(folder / "points.csv")) == old
    trials = {row["trial_id"]: row for row in rows(folder / "trials.csv")}
    assert list(trials) == list(read_state(folder).trials)
    stopped = [row for row in trials.values() if row["status"] == "stopped early"]
    assert stopped and {row["stopped_by"] for row in stopped} == {"scheduler"}
    assert "complete already" in capsys.readouterr().out
    assert evaluate([str(folder)]) == 0
    best = pareto_points(load_study(folder))
    tested = {(row["trial_id"], int(row["step"])) for row in rows(folder / "test.csv")}
    assert tested == set(zip(best["trial_id"], best["step"], strict=True))
    manifest = read_manifest(folder)
    assert manifest.prepared.baseline is not None and manifest.prepared.baseline.test_macro_avg_acc is not None
    assert len(manifest.progress.test_opened) == 1
    after = files_of(folder)
    for name in ("journal/000.jsonl", *(n for n in before if n.startswith("ray/") or n.endswith(".safetensors"))):
        assert after[name] == before[name]


def test_an_open_study_of_other_code_is_refused_and_the_files_named(
    storage: Path, tiny_tau: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(storage / "open")
    assert run(["--resume", "--name", "open", "--storage", str(storage), f"--dataset_dir={tiny_tau}"]) == 2
    printed = capsys.readouterr().out
    assert "--allow-changes" in printed and ".py (changed)" in printed
    assert files_of(storage / "open") == before


@pytest.mark.slow
@pytest.mark.ray
def test_an_open_study_continues_to_the_points_of_the_complete_one(storage: Path, tiny_tau: Path) -> None:
    """t0002 continues from its checkpoint of format 1; the samples of the other trials equal the old ones."""
    folder, journal = storage / "open", (storage / "open" / JOURNAL).read_bytes()
    command = [sys.executable, "tune/run.py", "--resume", "--allow-changes", "--name", "open"]
    command += ["--storage", str(storage), f"--dataset_dir={tiny_tau}"]
    environment = os.environ | {"COLUMNS": "160"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = read_manifest(folder)
    assert manifest.progress.status == "complete" and "the code has changed" in manifest.progress.changes[0].what
    assert manifest.prepared.dataset.fingerprint, "the next resume compares the data"
    assert (folder / JOURNAL).read_bytes() == journal
    state = read_state(folder)
    assert state.drivers == 2 and state.trials["t0002"].restores == 1 and state.trials["t0002"].repeated <= 1
    expected = {(row["trial_id"], row["step"]): row for row in rows(storage / "complete" / "points.csv")}
    found = {(row["trial_id"], row["step"]): row for row in rows(folder / "points.csv")}
    assert len(rows(folder / "points.csv")) == len(found)
    # this version stops trials at another epoch, so later trials may have fewer points, or none
    assert {"t0000", "t0001", "t0002"} <= {trial for trial, _ in found} <= {trial for trial, _ in expected}
    shared = found.keys() & expected.keys()
    ended = [key for key in expected if key[0] in ("t0000", "t0001")]  # before the resume
    assert all(found[key]["status"] == expected[key]["status"] for key in ended)
    for key in shared:
        row = found[key]
        for column in ("macs", "params", "config/train.lr", "config/prune.ratios"):
            assert row[column] == expected[key][column], (key, column)
        assert float(row["val_macro_avg_acc"]) == pytest.approx(float(expected[key]["val_macro_avg_acc"]), abs=0.11)
    shutil.rmtree(folder / "ray")
