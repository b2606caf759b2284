"""A study in an object store, with a real S3 server (moto) on this machine: start, kill, resume, report; bad URIs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from trainables.storage import Store, TrialCheckpoints
from tune.evaluate import main as evaluate
from tune.journal import Journal, read_log
from tune.mirror import Mirror, check_store
from tune.study import StudyError
from tune.writer import append_row

pytestmark = pytest.mark.slow  # starts an S3 server
ROOT = Path(__file__).parents[1]
SECRET = "not-a-real-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="studies")
    return "s3://studies"


def test_bad_uris(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="there is no bucket nowhere"):
        check_store("s3://nowhere/x")
    with pytest.raises(StudyError, match="credentials do not belong into the URI") as told:
        check_store(f"s3://testing:{SECRET}@studies/x")
    assert SECRET not in str(told.value)
    with pytest.raises(StudyError, match="cannot be reached or written"):
        check_store("s9://studies/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StudyError, match="cannot be reached or written"):
        check_store("s3://studies/x")


def test_folders_go_and_come(bucket: str, tmp_path: Path) -> None:
    store = Store(f"{bucket}/a")
    (tmp_path / "x" / "inner").mkdir(parents=True)
    (tmp_path / "x" / "inner" / "file").write_text("content")
    store.push(tmp_path / "x", "b/x")
    assert store.names("b") == ["x"]
    assert store.names("nothing") == []
    store.pull("b/x", tmp_path / "y")
    assert (tmp_path / "y" / "inner" / "file").read_text() == "content"
    store.pull("b/x/inner/file", tmp_path / "z" / "file")
    assert (tmp_path / "z" / "file").read_text() == "content"
    store.delete("b/x")
    assert store.names("b/x") == []


def test_a_driver_elsewhere_is_refused_while_it_lives(bucket: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "study").mkdir()
    mirror = Mirror(tmp_path / "study", f"{bucket}/driven")
    mirror.push()
    mirror.check_driver()  # of this machine: its lock tells
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    with pytest.raises(StudyError, match=r"is being run on .* wait"):
        mirror.check_driver()
    mirror.push(last=True)
    mirror.check_driver()


def test_a_machine_that_comes_back_takes_what_another_has_gone_on_with(tmp_path: Path) -> None:
    """The store is a folder here: what counts is which side is taken."""
    event = {"config_id": "t0000", "replicate": 0, "params": {}, "values": {}}
    here, there = tmp_path / "here", tmp_path / "there"
    (tmp_path / "store").mkdir()
    first = Journal(here)
    (here / "study.json").write_text("first")
    first.add("trial", trial="t0000", **event)
    append_row(here / "experiments" / "t0000" / "results.csv", {"epochs": 1})
    Mirror(here, str(tmp_path / "store")).push()
    first.add("restore", trial="t0000", epochs=1)  # not sent
    (here / "study.json").write_text("not sent")
    Mirror(here, str(tmp_path / "store")).pull()
    assert read_log(here).trials["t0000"].restores == 1
    assert (here / "study.json").read_text() == "not sent"
    another = Mirror(there, str(tmp_path / "store"))
    another.pull()
    append_row(there / "experiments" / "t0000" / "results.csv", {"epochs": 2})
    Journal(there).add("trial", trial="t0001", **event | {"config_id": "t0001"})
    another.push(last=True)
    Mirror(here, str(tmp_path / "store")).pull()
    assert (here / "study.json").read_text() == "first"
    log = read_log(here)
    assert list(log.trials) == ["t0000", "t0001"]
    assert log.trials["t0000"].restores == 0
    assert (here / "experiments" / "t0000" / "results.csv").read_text() == "epochs\n1\n2\n"


@pytest.mark.ray
def test_start_kill_resume_report(bucket: str, tiny_tau: Path, tmp_path: Path, monkeypatch) -> None:
    """The second driver starts without any file of the first one's machine."""
    space = tmp_path / "s.yaml"
    space.write_text(
        "base: [student=rep_mobile, student.base_channels=8, distill.kd_alpha=1]\n"
        "parameters:\n  train.lr: {loguniform: [0.002, 0.02]}\n  prune.ratios: {choice: [[0.2], [0.3]]}\n"
    )
    words = [
        *("--space", str(space), "--name", "x", "--resume", "auto", "--storage", f"{bucket}/asc", "--num-samples", "3"),
        *("--max-concurrent", "1", f"--dataset_dir={tiny_tau}", f"--cache_dir={tmp_path / 'cache'}"),
        *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
        *("train.epochs=3", "train.batch_size=8", "prune.epochs=2"),
    ]

    def start(machine: str) -> tuple[subprocess.Popen[str], Path]:
        folder = tmp_path / machine
        folder.mkdir()
        environment = os.environ | {"WANDB_MODE": "offline", "COLUMNS": "160", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "tune" / "run.py"), *words]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=folder, env=environment, **streams)  # type: ignore[call-overload]
        return process, folder / "runs" / "s3-studies-asc" / "x"

    first, _ = start("one")
    store = Store(f"{bucket}/asc/x")
    until = time.monotonic() + 200
    while not store.names("experiments/t0001/step0") and time.monotonic() < until and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert store.names("journal") == ["000.jsonl"]
    time.sleep(1)
    second, folder = start("two")
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    log = read_log(folder)
    assert log.counts() == {"complete": 3, "rejected": 0}
    assert log.runs == 2
    assert {"study.json", "points.csv", "report.html", "front.csv"} <= set(store.names(""))
    assert len([name for name in store.names("wandb") if name.startswith("offline-run-")]) >= 3
    assert len(TrialCheckpoints(f"{bucket}/asc/x/ray", "t0002").newest_first()) == 1
    text = "".join(p.read_text(errors="ignore") for p in folder.rglob("*.json*"))
    assert SECRET not in text
    assert evaluate([str(folder)]) == 0
    assert "test.csv" in store.names("")
    assert json.loads((folder / "study.json").read_text())["status"] == "complete"
