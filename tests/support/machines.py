"""Simulate several machines that share an object store, on this machine.

A `Machine` runs drivers with their own working folders. A `Line` is a connection to the store that can be interrupted.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.paths import ROOT
from trainables.outputs.storage import Store

PATIENCE_S = 1200  # timeout of a test that hangs; a busy machine needs many minutes for a few trials
# a driver whose lease expires after 4 s, so that a test need not wait a minute
QUICK = """
import sys
import tune.study.lease as lease
lease.FRESH_S, lease.RENEW_S, lease.SETTLE_S = 4.0, 0.5, 1.0
from tune.{command} import main
sys.exit(main())
"""
AS_IT_IS = """
import sys
from tune.{command} import main
sys.exit(main())
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}  # token of the tests' Ray clusters
SPACE = (
    "base: [student=rep_mobile, student.base_channels=8, distill.kd_alpha=1]\n"
    "parameters:\n  train.lr: {loguniform: [0.002, 0.02]}\n  prune.ratios: {choice: [[0.2], [0.3]]}\n"
)
SMALL = (
    *("frontend.n_fft=1024", "frontend.win_length=1024", "frontend.n_mels=32", "augment.freq_mask=4"),
    *("train.batch_size=8", "prune.epochs=2"),
)


class Machine:
    """A simulated machine: drivers started on it have their own cache folder, current directory and store endpoint.

    `script` is the Python code of a driver: QUICK (its lease expires after 4 s) or AS_IT_IS (the real timeouts).
    """

    def __init__(self, folder: Path, endpoint: str, script: str = QUICK):
        self.folder, self.endpoint, self._script = folder, endpoint, script
        self.directory = folder / "cwd"
        self.directory.mkdir(parents=True, exist_ok=True)

    def start(self, *words: str, command: str = "run") -> subprocess.Popen[str]:
        environment = os.environ | {
            **{"XDG_CACHE_HOME": str(self.folder / "home"), "AWS_ENDPOINT_URL": self.endpoint},
            **{"WANDB_MODE": "disabled", "COLUMNS": "160", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            **{"AWS_EC2_METADATA_DISABLED": "true", **TOKEN},
        }
        return subprocess.Popen(
            [sys.executable, "-c", self._script.format(command=command), *words],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, command: str = "run", timeout: float = PATIENCE_S) -> tuple[int, str]:
        """Run a command of asc-tune with the arguments `words`; return its exit status and its output."""
        process = self.start(*words, command=command)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            end(process)
        return process.returncode, output


def end(process: subprocess.Popen[str]) -> None:
    """Kill `process` and its children, if it is still running."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def processes_with(variable: str) -> list[int]:
    """Return the processes that were started with `variable` ("NAME=value") in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


def end_all(variable: str, seconds: float = 15) -> None:
    """Wait until no process has `variable` in its environment; kill those that are left after `seconds`."""
    until = time.monotonic() + seconds
    while found := processes_with(variable):
        for number in found if time.monotonic() > until else []:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.2)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = PATIENCE_S) -> None:
    """Wait until `condition` is true; AssertionError if `process` ends before, or after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            end(process)
            output = process.communicate()[0][-3000:]
            raise AssertionError(f"the expected condition did not become true; output of the process: {output}")
        time.sleep(0.2)


def content(store: Store) -> dict[str, tuple[int, int, str]]:
    """Return the files of a study in an object store: name -> size in bytes, time of change and SHA-256.

    The lease, the checkpoints of trials (ray/) and wandb/ are not included.
    """
    found = store.stamps("", recursive=True)
    study_files = {n: s for n, s in found.items() if n.partition("/")[0] not in ("lease", "ray", "wandb")}
    return {n: (*s, hashlib.sha256(store.read(n)).hexdigest()) for n, s in study_files.items()}


@contextmanager
def ray_nodes() -> Iterator[str]:
    """Yield the address of a Ray cluster of two nodes with two CPUs each, which runs in a new process.

    A driver whose storage is cut off may keep two CPUs until it ends: that of its trial, and that of the trial's
    restart. Other drivers need further CPUs.
    """
    process = subprocess.Popen(
        [sys.executable, "tests/support/two_nodes.py", "2"],
        cwd=ROOT,
        env=os.environ | TOKEN | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.communicate(timeout=PATIENCE_S)  # closes stdin, which stops the cluster


class Line:
    """A TCP proxy to the server at the URL `target`; `cut` interrupts the connection, `mend` restores it."""

    def __init__(self, target: str):
        self._target = (urlsplit(target).hostname, urlsplit(target).port)
        self._server: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._port = 0
        self.mend()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", self._port))
        server.listen(64)
        self._port, self._server = server.getsockname()[1], server
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def cut(self) -> None:
        """Close all open connections and refuse new ones."""
        if self._server:
            self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._server, self._open = None, []

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
                far = socket.create_connection(self._target)  # type: ignore[arg-type]
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end_ in (source, sink):
            with suppress(OSError):
                end_.shutdown(socket.SHUT_RDWR)
