"""A study in an object store: the driver works in a folder of its own and keeps both alike.

    mirror = Mirror(folder, "s3://bucket/studies/name", lease)
    mirror.pull()                # the store's manifest, journal and tables come here
    mirror.push(last=False)      # what this driver has changed goes there; called often, does little

The store is the truth. The working folder has a fixed place for each URI and endpoint, and remembers in `.mirror.json`
in which version each file agreed with the store. Where the store's journal has changed since (another driver went on,
or the study was made anew under its name), the working folder is emptied first. Only files that changed here since
they agreed are sent, the journal last: the store's journal is never ahead of the tables there. Checkpoints and
deployed networks are written to the store by Ray and by the workers themselves.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from data.files import make_folder, replace_text
from trainables.outputs.records import EXPERIMENTS
from trainables.outputs.storage import Store
from tune.study.journal import FOLDER as JOURNAL
from tune.study.manifest import StudyError

PERIOD_S = 2.0
LONGEST_S = 30.0  # between two pushes
VERIFIED_S = 1.0  # for so long an answer about the lease is good
STATE = ".mirror.json"
_SKIPPED = ("ray", "wandb", "lease")  # folders that Ray, the workers and the lease look after
Stamp = tuple[int, int]  # bytes, and time of change in ns


def is_uri(storage: str) -> bool:
    return "://" in storage


def work_root() -> Path:
    """Where studies of object stores are worked on: $XDG_CACHE_HOME/asc-tune, or ~/.cache/asc-tune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve() / "asc-tune"


def working_folder(storage: str) -> Path:
    """The folder of this user in which studies of the object store `storage` are worked on, wherever a command is
    started; another one for each URI and endpoint."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    storage = storage.rstrip("/")
    digest = hashlib.sha256(f"{endpoint}\n{storage}".encode()).hexdigest()[:12]
    parts = urlsplit(storage)
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.netloc}{parts.path}").strip("-")[:80]
    return work_root() / f"{readable}-{digest}"


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
        probe = f".probe-{os.getpid()}"
        store.write(probe, b"probe")
        store.files.delete_file(f"{store.path}/{probe}")
    except (OSError, ValueError) as error:  # pyarrow's are kinds of both
        raise StudyError(f"--storage {storage} cannot be reached or written: {error}") from error
    return store


class Mirror:
    """Keeps `folder` and the study at `uri` alike. `verify` is called before each batch of writes to the store and
    raises StudyLost where another driver has the study."""

    def __init__(self, folder: Path, uri: str, verify: Callable[[], None] = lambda: None):
        self.folder, self.store, self._verify = folder, Store(uri), verify
        self._due = 0.0
        self._agreed = self._read_state()  # file -> (stamp there, stamp here) when both were the same

    def pull(self) -> None:
        """Bring manifest, journal and tables here. Events that a driver of this machine had no time to send are kept,
        unless another driver has gone on since."""
        there = self._there()
        journal = {name for name in there if name.startswith(f"{JOURNAL}/")}
        known = {name for name in self._agreed if name.startswith(f"{JOURNAL}/")}
        if known <= journal and all(self._goes_on_from(name, there[name]) for name in journal):
            for name in journal:  # what lies here is as new or newer
                self._agreed[name] = (there[name], self._agreed.get(name, (None, (-1, -1)))[1])
        else:
            self._empty()
        self._pull(name for name, stamp in there.items() if not self._has(name, stamp))

    def _goes_on_from(self, name: str, stamp: Stamp) -> bool:
        """Whether a journal segment here begins with what the store has of it: its driver was killed before it had
        sent the rest, or had noted that it was sent."""
        local = self.folder / name
        if not local.is_file():
            return False
        agreed = self._agreed.get(name)
        return (agreed is not None and agreed[0] == stamp) or local.read_bytes().startswith(self.store.read(name))

    def _has(self, name: str, stamp: Stamp) -> bool:
        """Whether a file here is the store's, or was changed here since it was."""
        return self._agreed.get(name, (None, None))[0] == stamp and (self.folder / name).is_file()

    def pull_networks(self, checkpoints: Iterable[str]) -> None:
        """Bring the deployed networks in the folders `checkpoints` (relative to the study) here."""
        for folder in checkpoints:
            there = {f"{folder}/{name}": stamp for name, stamp in self.store.stamps(folder, recursive=True).items()}
            self._pull(name for name, stamp in there.items() if not self._has(name, stamp))

    def push(self, last: bool = False) -> None:
        """Send what has changed here; about a twentieth of the time goes into it, unless this is the `last` time."""
        if not last and time.monotonic() < self._due:
            return
        started = verified = time.monotonic()
        self._verify()
        changed = sorted(self._changed(), key=lambda path: (path.parent.name == JOURNAL, path))
        for path in changed:
            if time.monotonic() - verified > VERIFIED_S:  # this driver may have been paused
                self._verify()
                verified = time.monotonic()
            name, stamp = path.relative_to(self.folder).as_posix(), _stamp(path)
            self.store.push(path, name)
            self._agree(name, stamp)
            if name.startswith(f"{JOURNAL}/"):
                self._write_state()
        if changed:
            self._write_state()
        ended = time.monotonic()
        self._due = ended + min(max(PERIOD_S, 20 * (ended - started)), LONGEST_S)

    def ended_elsewhere(self) -> frozenset[str]:
        """Names of the trials whose info.json is in the store."""
        files = self.store.stamps(EXPERIMENTS, recursive=True)
        return frozenset(name.rpartition("/")[0] for name in files if name.endswith("/info.json"))

    def _there(self) -> dict[str, Stamp]:
        """The files of the store that are kept alike: those of the study's folder, and the journal."""
        found = self.store.stamps("")
        return found | {f"{JOURNAL}/{name}": stamp for name, stamp in self.store.stamps(JOURNAL).items()}

    def _pull(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            local = self.folder / name
            make_folder(local.parent)
            self.store.pull(name, local)
            self._agree(name, _stamp(local))
        self._write_state()

    def _agree(self, name: str, here: Stamp) -> None:
        self._agreed[name] = (self.store.stamp(name), here)

    def _empty(self) -> None:
        """Forget everything that lies here: it belongs to another state of the study."""
        if self.folder.is_symlink():
            raise StudyError(f"{self.folder} is a symbolic link; remove it: a working folder is emptied and filled")
        self._agreed = {}
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        make_folder(self.folder)

    def _changed(self) -> list[Path]:
        """Files here that differ from what agreed with the store."""
        found = []
        for top in self.folder.iterdir():
            if top.name in _SKIPPED or top.name.startswith("."):
                continue
            for path in top.rglob("*") if top.is_dir() else [top]:
                name = path.relative_to(self.folder).as_posix()
                if (
                    path.is_file()
                    and not path.is_symlink()
                    and not path.name.startswith(".")
                    and self._agreed.get(name, (None, None))[1] != _stamp(path)
                ):
                    found.append(path)
        return found

    def _read_state(self) -> dict[str, tuple[Stamp, Stamp]]:
        try:
            content = json.loads((self.folder / STATE).read_text())
            if content["uri"] != self.store.uri:
                return {}
            return {name: ((a, b), (c, d)) for name, (a, b, c, d) in content["agreed"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # nothing is known to agree

    def _write_state(self) -> None:
        content = {"uri": self.store.uri, "agreed": {name: [*a, *b] for name, (a, b) in self._agreed.items()}}
        make_folder(self.folder)
        replace_text(self.folder / STATE, json.dumps(content))


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
