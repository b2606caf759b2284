"""Tracking with W&B never stops a trial: not by an id that is in use, nor by a server that does not answer."""

import json
import socket
from pathlib import Path

import pytest
import wandb

from trainables.outputs import tracking
from trainables.outputs.tracking import Tracker


def runs(folder: Path) -> list[str]:
    return sorted(path.name.split("-", 3)[3] for path in (folder / "wandb").glob("offline-run-*"))


@pytest.fixture(autouse=True)
def no_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no ~/.netrc


@pytest.mark.slow
def test_run_is_written_offline(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "study-t0", "t0", "study", {"train.lr": 0.01})
    tracker.log({"train_loss": 1.5, "points": [1]}, 1)
    tracker.summary({"step0/macs": 3})
    tracker.finish()
    assert runs(tmp_path) == ["study-t0"]
    (binary,) = (tmp_path / "wandb").glob("offline-run-*/run-study-t0.wandb")
    assert b"train.lr" in binary.read_bytes()
    assert b"step0/macs" in binary.read_bytes()


@pytest.mark.slow
def test_id_that_w_and_b_refuses_gets_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = wandb.init, []

    def refuse_first(**arguments):
        tried.append(arguments["id"])
        if len(tried) == 1:
            raise RuntimeError("run ID is in use")
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", refuse_first)
    Tracker(tmp_path, "study-t0", "t0", "study", {}).finish()
    assert tried[0] == "study-t0"
    assert runs(tmp_path) == [tried[1]]
    assert tried[1].startswith("study-t0-")


def test_trial_goes_on_without_w_and_b(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(**_):
        raise RuntimeError("no")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = Tracker(tmp_path, "study-t0", "t0", "study", {})
    tracker.log({"a": 1}, 1)
    tracker.summary({"a": 1})
    tracker.finish()
    assert "t0 is not logged to W&B" in caplog.text


def test_mode_follows_key_server_and_override(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.mode() == "offline"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert tracking.mode() == "offline"  # no key
        monkeypatch.setenv("WANDB_API_KEY", json.dumps("k" * 40))
        assert tracking.mode() == "online"
    assert tracking.mode() == "offline"  # the server is gone
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.mode() == "disabled"
