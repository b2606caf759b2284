"""Who can reach Ray: the token file, open clusters, the addresses of a local start, and the workers' search path."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import ray
from rich.console import Console

from tests.support.machines import PATIENCE_S
from tests.support.paths import ROOT
from tune.cluster import access
from tune.cluster.access import OwnPath, check_access, private_token, requires_token
from tune.study.manifest import StudyError


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_token_is_private_and_kept(own_home: Path) -> None:
    before = os.umask(0)  # the umask must not matter
    try:
        private_token()
        assert not own_home.exists()  # --address: the cluster has a token, and this user must copy it
        private_token(create=True)
    finally:
        os.umask(before)
    path = own_home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) == 64 and mode(path) == 0o600 and mode(path.parent) == 0o700
    private_token(create=True)
    assert path.read_text() == token
    assert [p.name for p in path.parent.iterdir()] == ["auth_token"]


def test_token_that_all_users_can_read_becomes_private(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_home / ".ray" / "auth_token"
    path.parent.mkdir(parents=True)
    path.write_text("a" * 64)
    path.chmod(0o644)
    private_token()
    assert (path.read_text(), mode(path)) == ("a" * 64, 0o600)
    elsewhere = own_home / "token"
    elsewhere.write_text("b" * 64)
    elsewhere.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(elsewhere))
    private_token(create=True)
    assert mode(elsewhere) == 0o600


@contextmanager
def control_service(code: grpc.StatusCode | None) -> Iterator[str]:
    """Yield the address of a server that gives the answer `code` (None: success) to the request of `requires_token`."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if code:
            context.abort(code, "")
        return request

    _, service, method = access.QUESTION.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_answers_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy for web pages is not asked
    with control_service(None) as address:
        assert not requires_token(address)
        monkeypatch.setenv("RAY_USE_TLS", "1")
        assert requires_token(address)
        monkeypatch.delenv("RAY_USE_TLS")
    with control_service(grpc.StatusCode.UNAUTHENTICATED) as address:
        assert requires_token(address)
    with pytest.raises(StudyError) as error:  # the cluster is gone: no answer is not a yes
        requires_token(address)
    assert address in str(error.value) and "UNAVAILABLE" in str(error.value)


@pytest.mark.parametrize("address", ["auto", None])
def test_open_cluster_is_refused_or_entered_with_a_warning(
    address: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ended: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with control_service(None) as gcs_address:
        context = type("Context", (), {"gcs_address": gcs_address})
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        with pytest.raises(StudyError) as error:
            check_access(address, False, Console())
        text = str(error.value)
        assert ended and gcs_address in text and "--allow-open-cluster" in text
        assert ("--address auto" if address else "RAY_AUTH_MODE=disabled") in text
        check_access(address, True, Console(width=500))
    assert gcs_address in capsys.readouterr().out
    assert len(ended) == 1


def test_workers_do_not_search_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*folders: Path) -> list[str]:
        config = OwnPath()
        config._py_driver_sys_path.extend(map(str, folders))  # as `ray.init` does
        config._serialize()
        return list(config._get_proto_job_config().py_driver_sys_path)

    monkeypatch.chdir(tmp_path)
    assert searched(tmp_path, ROOT / "tests", tmp_path) == [str(ROOT / "tests")]
    monkeypatch.chdir(ROOT)
    assert searched(ROOT) == [str(ROOT)] == [str(access.ROOT)]


# starts Ray as tune/run.py does; prints the addresses on which its processes listen, and what a worker knows
STARTED = """
import json, os, sys
from pathlib import Path
from rich.console import Console
from tune.ray_start import start_ray
import ray

start_ray(None, Console(file=sys.stderr), Path("ray.log").resolve())

@ray.remote(num_cpus=0)
def paths():
    return sys.path

def children(pid):
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in tasks.read_text().split():
            yield child
            yield from children(child)

searched = ray.get(paths.remote())
own = {os.readlink(link) for pid in [os.getpid(), *children(os.getpid())]
       for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
listening = []
for name in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            listening.append(fields[1].partition(":")[0])
print(json.dumps({"listening": listening, "searched": searched}))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_on_this_machine_is_private(tmp_path: Path, own_home: Path) -> None:
    hostile = tmp_path / "current"
    hostile.mkdir()
    for name in ("html", "decimal", "colorsys"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    found = subprocess.run(
        [sys.executable, "-P", "-c", STARTED],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    seen = json.loads(found.stdout.splitlines()[-1])
    assert len(seen["listening"]) >= 6 and set(seen["listening"]) <= LOOPBACK
    assert str(hostile) not in seen["searched"] and "" not in seen["searched"]
    assert not (tmp_path / "executed").exists(), "Ray's processes imported a module of the current folder"
    assert mode(own_home / ".ray" / "auth_token") == 0o600
