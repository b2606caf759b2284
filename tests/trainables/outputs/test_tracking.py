"""Tracking with W&B never stops a trial: not by an id that is in use, nor by a server that does not answer."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb

from tests.support.paths import ROOT
from tests.support.trainables.wandb_server import git_repository, wandb_server
from trainables.outputs import tracking
from trainables.outputs.tracking import Tracker


def runs(folder: Path) -> list[str]:
    return sorted(path.name.split("-", 3)[3] for path in (folder / "wandb").glob("offline-run-*"))


@pytest.fixture(autouse=True)
def no_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC", "http_proxy"):
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


KEY = "k" * 40


@contextmanager
def web_server(status: int | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that answers each request with `status` (None: never), and the requests so far."""
    requests: list[str] = []
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            assert "Authorization" not in self.headers, "the test of the server must not send the key"
            if status is None:
                over.wait()
            self.send_response(status or 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def modes() -> tuple[str, list[str]]:
    """Return the mode that is chosen and the warnings."""
    warnings: list[str] = []
    return tracking.choose_mode(warnings.append), warnings


@pytest.mark.parametrize(
    ("status", "chosen"), [(200, "online"), (401, "online"), (404, "online"), (500, "offline"), (503, "offline")]
)
def test_mode_follows_the_servers_answer(status: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(status) as (url, requests):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert modes() == ("offline", [])  # no key
        assert requests == []
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        found, warnings = modes()
        assert (found, len(requests)) == (chosen, 1)
        assert [str(status) in w and url in w and KEY not in w for w in warnings] == [True] * (chosen == "offline")


def test_a_server_that_hangs_or_is_gone_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "ANSWER_S", 0.2)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with web_server(None) as (url, requests):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        found, warnings = modes()
        assert (found, len(warnings), len(requests)) == ("offline", 1, 1)
    found, warnings = modes()  # the server is gone
    assert found == "offline" and url in warnings[0]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert modes() == ("disabled", [])


@pytest.mark.parametrize("place", ["environment", "settings file", "environment, online"])
def test_address_with_a_password_is_not_used(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B would log the address, also where it starts a run, and the mode `online` would start it."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if "online" in place:
        monkeypatch.setenv("WANDB_MODE", "online")
    with web_server(200) as (url, requests):
        address = url.replace("//", "//user:s3cr3t@")
        if place == "settings file":
            settings = Path.home() / ".config" / "wandb" / "settings"
            settings.parent.mkdir(parents=True)
            settings.write_text(f"[default]\nbase_url = {address}\n")
        else:
            monkeypatch.setenv("WANDB_BASE_URL", address)
        found, warnings = modes()
        assert (found, len(warnings), requests) == ("offline", 1, [])
        assert "s3cr3t" not in warnings[0] and "user name or a password" in warnings[0]


ONE_RUN = """
from pathlib import Path
from trainables.outputs.tracking import Tracker
Tracker(Path("runs"), "s-t0", "t0", "s", {"train.lr": 0.01}, mode="online").finish()
"""


@pytest.mark.slow
def test_no_token_of_the_repository_is_recorded(tmp_path: Path) -> None:
    """W&B removes the password from the address of a repository, but a token may be the user name."""
    git_repository(tmp_path, "https://T0KEN:x-oauth-basic@host/x.git")
    with wandb_server() as server:
        settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
        # a process of its own: W&B keeps the address of the first server that a process used
        subprocess.run([sys.executable, "-c", ONE_RUN], cwd=tmp_path, env=os.environ | settings, check=True)
    assert "wandb-metadata.json" in server.uploaded()
    (metadata,) = (tmp_path / "runs").glob("wandb/run-*/files/wandb-metadata.json")
    assert json.loads(metadata.read_text())["git"]["commit"]  # W&B looked at the repository
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [path for path in files if b"T0KEN" in path.read_bytes()] == []
    assert [request for request in server.requests if b"T0KEN" in request.body] == []


def test_values_of_invalid_settings_are_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_HTTP_PROXY", "me:s3cr3t@host")
    Tracker(tmp_path, "study-t0", "t0", "study", {}, mode="online").finish()
    assert "t0 is not logged to W&B" in caplog.text and "s3cr3t" not in caplog.text


def test_control_characters_in_errors_of_the_server_are_logged_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_):
        raise RuntimeError("answer of the server: \x1b[2J")

    monkeypatch.setattr(wandb, "init", refuse)
    Tracker(tmp_path, "study-t0", "t0", "study", {}, mode="online")
    assert r"\x1b[2J" in caplog.text and "\x1b" not in caplog.text


@pytest.mark.parametrize("name", ["http_proxy", "WANDB_HTTP_PROXY"])
def test_server_without_a_port_is_asked_through_the_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "")
    with web_server(200) as (url, requests):
        monkeypatch.setenv(name, url)
        assert modes() == ("online", [])
        assert requests == ["http://wandb.invalid/graphql"]
    with web_server(407) as (url, _):
        monkeypatch.setenv(name, url)
        found, warnings = modes()
        assert found == "offline" and "407" in warnings[0]


def test_settings_of_wandb_login_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Path.home() / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    with web_server(200) as (url, requests):
        settings.write_text(f"[default]\nbase_url = {url}\n")
        host = url.removeprefix("http://")
        (Path.home() / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
        assert modes() == ("online", [])
        assert len(requests) == 1
        settings.write_text(f"[default]\nbase_url = {url}\nmode = offline\n")  # `wandb offline`
        assert modes() == ("offline", [])
    with web_server(500) as (url, _):
        monkeypatch.setenv("WANDB_BASE_URL", url)  # the environment has priority, and there is no key for this server
        settings.write_text(f"[default]\nbase_url = http://127.0.0.1:{host.rpartition(':')[2]}\n")
        assert modes() == ("offline", [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_BASE_URL", "host:8080"), ("WANDB_API_KEY", "short-secret"), ("WANDB_BASE_URL", "http://")],
)
def test_invalid_settings_mean_offline_and_show_no_key(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv(name, value)
    found, warnings = modes()
    assert found == "offline" and len(warnings) == 1
    assert KEY not in warnings[0] and "short-secret" not in warnings[0]


@pytest.mark.slow
def test_a_server_that_fails_later_costs_one_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "START_S", 2.0)
    with web_server(500) as (url, requests):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        first = Tracker(tmp_path, "s-t0", "t0", "s", {}, mode="online")
        first.finish()
        assert first.mode == "offline"
        asked = len(requests)
        Tracker(tmp_path, "s-t1", "t1", "s", {}, mode=first.mode).finish()
        assert sum(path == "/graphql" for path in requests[asked:]) == 0
    assert [name.rpartition("-")[0] or name for name in runs(tmp_path)] == ["s-t0", "s"]


@pytest.mark.slow
def test_files_are_complete_after_finish(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "s-t0", "t0", "s", {})
    tracker.log({"train_loss": 1.5}, 1)
    tracker.finish()
    children = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    writers = [pid for pid in children if "wandb" in Path(f"/proc/{pid}/comm").read_text()]
    assert not writers, "W&B's background process may still write the run's file"
    (folder,) = tracker.files()
    assert b"train_loss" in (folder / "run-s-t0.wandb").read_bytes()
