"""Complete studies through Ray, from the command line: finish, kill, interrupt, resume, evaluate."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.front import pareto_points
from analysis.results import load_study
from ascmodels.checkpoint import load_student
from ascmodels.nessi import get_torch_size
from tests.support.analysis.browser import browser, check_report, reset_window, set_window
from tests.support.machines import PATIENCE_S
from tests.support.paths import ROOT
from tests.support.tune.typed_studies import TRIALS, Studies
from tune.evaluate import main as evaluate
from tune.study.journal import read_state
from tune.study.manifest import read_manifest

__all__ = ["browser"]  # a fixture

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def studies(tiny_tau: Path, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    return Studies(tiny_tau, tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def finished(studies: Studies) -> tuple[Path, str]:
    """Return the folder and the output of a complete study that ran one trial at a time."""
    process = studies.new("through", "--max-concurrent", "1", "--scheduler", "fifo")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return studies.folder / "through", output


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "points.csv").open() as handle:
        return list(csv.DictReader(handle))


def points_epochs(steps: list[dict[str, str]]) -> int:
    return max(int(step["epochs"]) for step in steps)


def wait_for_points(folder: Path, n: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if (folder / "points.csv").is_file() and len(rows(folder)) >= n:
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no {n} points in time: {process.communicate()[0]}")


def test_study_tells_and_leaves_what_it_promises(finished: tuple[Path, str]) -> None:
    folder, output = finished
    manifest = json.loads((folder / "study.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["trials"] == {"complete": TRIALS, "rejected": 0}
    for words in ("dashboard: http://127.0.0.1:", "baseline: logistic regression", "teacher:", "Pareto front"):
        assert words in output
    points = rows(folder)
    by_trial: dict[str, list[dict[str, str]]] = {}
    for row in points:
        by_trial.setdefault(row["trial_id"], []).append(row)
    assert sorted(by_trial) == [f"t{i:04d}" for i in range(TRIALS)]
    for name, steps in by_trial.items():
        info = json.loads((folder / "experiments" / name / "info.json").read_text())
        assert info["status"] == "complete"
        assert len(info["points"]) == len(steps) == 1 + len(info["sampled"]["prune.ratios"])
        macs = [int(step["macs"]) for step in steps]
        assert macs == sorted(macs, reverse=True)
        assert len(set(macs)) == len(macs)
        with (folder / "experiments" / name / "results.csv").open() as handle:
            epochs = [int(row["epochs"]) for row in csv.DictReader(handle)]
        assert epochs == list(range(1, points_epochs(steps) + 1))
    assert (folder / "report.html").stat().st_size > 100_000
    assert (folder / "front.png").read_bytes()[:4] == b"\x89PNG"
    runs = [path.name.split("-", 3)[3] for path in (folder / "wandb").glob("offline-run-*")]
    assert sorted(runs) == ["through", *(f"through-t{i:04d}" for i in range(TRIALS))]
    (table,) = (folder / "wandb").glob("offline-run-*-through/files/media/table/front*.json")
    assert len(json.loads(table.read_text())["data"]) == len(pareto_points(load_study(folder)))
    with (folder / "trials.csv").open() as handle:
        trials = list(csv.DictReader(handle))
    assert [(t["trial_id"], t["status"]) for t in trials] == [(f"t{i:04d}", "complete") for i in range(TRIALS)]
    assert all(t["epochs"] == t["planned_epochs"] and float(t["ended_s"]) > 0 for t in trials)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_report_in_a_browser(finished: tuple[Path, str], browser, width: int, scheme: str) -> None:
    """The parameters are brushed, a network is opened, a table is sorted, and nothing leaves the machine."""
    folder, _ = finished
    set_window(browser, width, scheme)
    check_report(browser, folder / "report.html", len(load_study(folder).points), scheme)
    reset_window(browser)


def test_every_points_checkpoint_is_the_network_that_was_measured(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    study = load_study(folder)
    for row in study.points.to_dict("records"):
        student, extra = load_student(folder / row["checkpoint"])
        frontend = extra["frontend"]
        frames = frontend["sample_rate"] // frontend["hop_length"] + 1
        assert get_torch_size(student, (1, 1, frontend["n_mels"], frames)) == (row["macs"], row["params"])
        assert extra["point"]["val_macro_avg_acc"] == row["val_macro_avg_acc"]


def test_actors_are_reused_and_leave_one_checkpoint_each(finished: tuple[Path, str]) -> None:
    """Old checkpoints are deleted during training, all but the newest when the next trial begins."""
    folder, _ = finished
    n_checkpoints = {path.name: len(list(path.glob("checkpoint_*"))) for path in folder.glob("ray/run001-*/t0*")}
    assert n_checkpoints == {f"t{i:04d}": 1 for i in range(TRIALS)}
    logs = [path.read_text() for path in (folder / "wandb").glob("offline-run-*-t0*/logs/debug.log")]
    assert len({re.search(r"MainThread:(\d+)", text)[1] for text in logs}) == 1  # type: ignore[index]


def test_resuming_a_complete_study_says_so_and_changes_nothing(finished: tuple[Path, str], studies: Studies) -> None:
    folder, _ = finished
    before = (folder / "points.csv").read_text()
    process = studies.start("--resume", "--name", "through")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "complete already" in output
    assert (folder / "points.csv").read_text() == before
    refused = studies.start("--resume", "--name", "through", "--num-samples", "99")
    output, _ = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 2
    assert all(text in output for text in ("--num-samples 99", f"has {TRIALS}", "--extend"))


def test_complete_study_is_extended_and_its_front_confirmed(
    finished: tuple[Path, str], studies: Studies, tmp_path: Path
) -> None:
    """Add two configurations, then a second seed for those of the front, whose means form the new front.

    Earlier results on the test split are kept.
    """
    folder = Path(shutil.copytree(finished[0], tmp_path / "moved"))  # the study has moved, too
    assert evaluate([str(folder)]) == 0
    tested = (folder / "test.csv").read_bytes()
    baseline = read_manifest(folder).prepared.baseline
    assert baseline is not None and baseline.test_macro_avg_acc is not None
    before = rows(folder)
    words = ["--storage", str(tmp_path), "--name", "moved"]
    extended = studies.start(*words, "--extend", "2")
    output, _ = extended.communicate(timeout=PATIENCE_S)
    assert extended.returncode == 0, output
    manifest = json.loads((folder / "study.json").read_text())
    assert (manifest["num_samples"], sum(manifest["trials"].values())) == (TRIALS + 2, TRIALS + 2)
    assert rows(folder)[: len(before)] == before
    assert read_manifest(folder).prepared.baseline == baseline
    front = {row["trial_id"] for row in csv.DictReader((folder / "front.csv").open())}
    confirmed = studies.start(*words, "--confirm", "1")
    output, _ = confirmed.communicate(timeout=PATIENCE_S)
    assert confirmed.returncode == 0, output
    found = {row["trial_id"] for row in rows(folder) if row["replicate"] == "1"}
    assert found == {f"{name}r1" for name in front}
    for name in front:
        dense = [row for row in rows(folder) if row["config_id"] == name and row["step"] == "0"]
        assert dense[0]["macs"] == dense[1]["macs"]
        assert dense[0]["val_loss"] != dense[1]["val_loss"]
    with (folder / "front.csv").open() as handle:
        means = list(csv.DictReader(handle))
    assert means
    assert {row["n_seeds"] for row in means} == {"2"}
    assert {row["trial_id"] for row in means} <= front
    assert read_manifest(folder).prepared.baseline == baseline
    assert (folder / "test.csv").read_bytes() == tested


def check_interrupted(folder: Path, process: subprocess.Popen[str]) -> None:
    """Check that a signal ended the study: exit status 130, status `interrupted`, and the command to resume it."""
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert f"--resume --name {folder.name}" in output
    assert json.loads((folder / "study.json").read_text())["status"] == "interrupted"


def test_study_stopped_twice_resumes_to_the_points_of_an_uninterrupted_one(
    finished: tuple[Path, str], studies: Studies
) -> None:
    """SIGTERM, then SIGKILL during the resume; all trials end with the figures of the uninterrupted study (FIFO)."""
    folder = studies.folder / "killed"
    process = studies.new("killed", "--max-concurrent", "1", "--scheduler", "fifo")
    wait_for_points(folder, 3, process)
    process.send_signal(signal.SIGTERM)
    check_interrupted(folder, process)
    killed = studies.start("--resume", "--name", "killed")
    wait_for_points(folder, len(rows(folder)) + 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = studies.start("--resume", "--name", "killed")
    output, _ = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 0, output
    assert json.loads((folder / "study.json").read_text())["trials"] == {"complete": TRIALS, "rejected": 0}
    expected, found = (
        {(r["trial_id"], r["step"]): {**r, "search_s": None} for r in rows(study)} for study in (finished[0], folder)
    )
    assert len(rows(folder)) == len(found)
    assert found == expected
    state = read_state(folder)
    assert state.drivers == 3 and state.n_ended == TRIALS


def test_test_split_is_opened_for_the_front_only(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    command = [sys.executable, "tune/evaluate.py", str(folder)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    with (folder / "test.csv").open() as handle:
        tested = list(csv.DictReader(handle))
    with (folder / "front.csv").open() as handle:
        front = list(csv.DictReader(handle))
    assert {(r["trial_id"], r["step"]) for r in tested} == {(r["trial_id"], r["step"]) for r in front}
    manifest = json.loads((folder / "study.json").read_text())
    assert len(manifest["test_opened"]) == 1
    assert 0 <= manifest["baseline"]["test_macro_avg_acc"] <= 1
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "measured on the test split before" in again.stdout
    assert json.loads((folder / "study.json").read_text())["test_opened"] == manifest["test_opened"]


def test_swapped_checkpoint_is_refused(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "study", ignore=shutil.ignore_patterns("ray", "wandb")))
    (folder / "test.csv").unlink(missing_ok=True)
    with (folder / "front.csv").open() as handle:
        place = folder / next(csv.DictReader(handle))["checkpoint"]
    other = next(p for p in place.parent.glob("step*") if p != place)
    shutil.rmtree(place)
    shutil.copytree(other, place)
    assert evaluate([str(folder)]) == 2
    assert f"{place.name} holds a network of" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "test.csv").exists()


def test_space_without_a_feasible_point_ends_with_a_clear_error(studies: Studies) -> None:
    process = studies.start("--space", "kd", "--name", "starved", "--limits", "macs=1000", *studies.config)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert '"macs": 1000' in output
    assert "over the limits at every stage" in output


def test_finite_space_completes_when_it_is_used_up_and_failed_trials_are_told(studies: Studies, tmp_path: Path) -> None:
    """Two configurations for five trials; one of them diverges at once (a rate that no network survives)."""
    space = tmp_path / "two.yaml"
    space.write_text(
        "base: [student=cp_mobile, student.base_channels=8]\nparameters:\n  train.lr: {choice: [0.01, 1.0e+30]}"
    )
    process = studies.start("--space", str(space), "--name", "two", "--num-samples", "5", *studies.config)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "after 2 of 5 trials" in output
    manifest = json.loads((studies.folder / "two" / "study.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["trials"]["complete"] == manifest["trials"]["failed"] == 1
    failed = [json.loads(path.read_text()) for path in (studies.folder / "two").glob("experiments/*/info.json")]
    assert ["stage 0, epoch" in info["failure"] for info in failed if info["status"] == "failed"] == [True]


def test_cluster_that_does_not_answer(studies: Studies) -> None:
    process = studies.new("nowhere", "--address", "127.0.0.1:1")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "no Ray cluster answers there" in output
