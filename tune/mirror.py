"""A study that lies in an object store: the driver works in a folder of its own and keeps both alike.

    mirror = Mirror(folder, "s3://bucket/studies/name")
    mirror.pull()                # what another machine's driver has left there
    mirror.push(last=False)      # what has changed here; called often, does little

Checkpoints and deployed networks are written there by Ray and by the workers themselves. An object store has no locks:
`driver.json` says who drives the study, and a driver elsewhere is refused while it is fresh.
"""

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from trainables.records import EXPERIMENTS
from trainables.storage import Store
from tune.journal import FOLDER as JOURNAL
from tune.journal import read_log
from tune.study import StudyError

DRIVER = "driver.json"
FRESH_S = 60.0  # a driver says every PERIOD_S, at least twice in this time, that it is alive; else it is taken for dead
PERIOD_S = 2.0
_SKIPPED = ("ray", "wandb")  # folders that the workers and Ray look after


def working_folder(storage: str) -> Path:
    """Where studies of the object store `storage` are worked on here: runs/s3-bucket-path."""
    parts = urlsplit(storage)
    return Path("runs").resolve() / re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.netloc}{parts.path}").strip("-")


def check_store(storage: str) -> Store:
    """The store of a URI; StudyError where it cannot be reached or written, without what is secret in it."""
    parts = urlsplit(storage)
    if parts.username or parts.password or re.search(r"(?i)key|secret|token|password", parts.query):
        raise StudyError(
            f"--storage {parts.scheme}://...: credentials do not belong into the URI (Ray writes it into its files); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store wants, in the environment"
        )
    try:
        store = Store(storage)
        bucket = store.path.split("/")[0]
        if store.files.get_file_info(bucket).type == fs.FileType.NotFound:
            raise StudyError(f"--storage {storage}: there is no bucket {bucket}; create it, or correct the name")
        probe = f"{store.path}/.probe-{os.getpid()}"
        with store.files.open_output_stream(probe) as stream:
            stream.write(b"probe")
        store.files.delete_file(probe)
    except (OSError, ValueError) as error:  # pyarrow's are kinds of both
        raise StudyError(f"--storage {storage} cannot be reached or written: {error}") from error
    return store


class Mirror:
    """Keeps `folder` and the study at `uri` alike."""

    def __init__(self, folder: Path, uri: str):
        self.folder, self.store = folder, Store(uri)
        self._sent: dict[Path, tuple[int, int]] = {}  # file -> size and time of change, when it was sent
        self._due = 0.0

    def check_driver(self) -> None:
        """StudyError where a driver on another machine seems to run the study."""
        if DRIVER not in self.store.names(""):
            return
        driver: dict[str, Any] = json.loads(self._read(DRIVER))
        age = time.time() - driver["time"]
        if driver["host"] != socket.gethostname() and age < FRESH_S:  # on this machine the study's lock tells
            raise StudyError(
                f"the study in {self.store.uri} is being run on {driver['host']} (it was alive {age:.0f} s ago); stop "
                f"it, or wait {FRESH_S - age:.0f} s if it is dead"
            )

    def pull(self) -> None:
        """Bring the manifest, the journal and the tables here, unless those here go on from them: a driver here died
        before it had sent all. Where both have gone on, what is there counts."""
        there = {name: self._read(f"{JOURNAL}/{name}") for name in self.store.names(JOURNAL)}
        here = {p.name: p.read_bytes() for p in (self.folder / JOURNAL).glob("*.jsonl")}
        ahead = here != there and all(here.get(name, b"").startswith(text) for name, text in there.items())
        for name in self.store.sizes(""):
            if not ahead or not (self.folder / name).exists():
                self.store.pull(name, self.folder / name)
        if ahead:
            return
        for name in here.keys() - there.keys():
            (self.folder / JOURNAL / name).unlink()
        for name, text in there.items():
            (self.folder / JOURNAL).mkdir(parents=True, exist_ok=True)
            (self.folder / JOURNAL / name).write_bytes(text)
        for trial in read_log(self.folder).trials.values():
            if trial.crashed or not trial.ended:  # their learning curves are gone on with
                name = f"{EXPERIMENTS}/{trial.name}"
                if "results.csv" in self.store.names(name):
                    self.store.pull(f"{name}/results.csv", self.folder / name / "results.csv")

    def pull_networks(self) -> None:
        """Bring the deployed networks and info.json of all trials here, for evaluation."""
        for trial in self.store.names(EXPERIMENTS):
            for name in self.store.names(f"{EXPERIMENTS}/{trial}"):
                local = self.folder / EXPERIMENTS / trial / name
                if not local.exists():
                    self.store.pull(f"{EXPERIMENTS}/{trial}/{name}", local)

    def push(self, last: bool = False) -> None:
        """Send what has changed; about a twentieth of the time goes into it, unless this is the `last` time."""
        if not last and time.monotonic() < self._due:
            return
        started = time.monotonic()
        self._say_alive(time.time())
        for path in self._changed():
            stat = path.stat()
            self.store.push(path, path.relative_to(self.folder).as_posix())
            self._sent[path] = stat.st_size, stat.st_mtime_ns
        if last:
            self._say_alive(0.0)
        ended = time.monotonic()
        self._due = ended + min(max(PERIOD_S, 20 * (ended - started)), FRESH_S / 2)

    def _changed(self) -> list[Path]:
        found = []
        for top in self.folder.iterdir():
            if top.name in _SKIPPED or top.name.startswith("."):
                continue
            for path in top.rglob("*") if top.is_dir() else [top]:
                stat = path.stat()
                if path.is_file() and self._sent.get(path) != (stat.st_size, stat.st_mtime_ns):
                    found.append(path)
        return found

    def _read(self, name: str) -> bytes:
        with self.store.files.open_input_stream(f"{self.store.path}/{name}") as stream:
            return stream.read()

    def _say_alive(self, at: float) -> None:
        told = {"host": socket.gethostname(), "pid": os.getpid(), "time": at}
        self.store.files.create_dir(self.store.path)
        with self.store.files.open_output_stream(f"{self.store.path}/{DRIVER}") as stream:
            stream.write(json.dumps(told).encode())
