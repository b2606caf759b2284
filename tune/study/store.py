"""A study in an object store: the driver works in a local folder and synchronises it with the store.

    mirror = Mirror(folder, "s3://bucket/studies/name", lease.verify)
    mirror.pull()                # download the store's manifest, journal and tables
    mirror.push(last=False)      # upload files changed by this driver; cheap, called often

The store is authoritative. The working folder has a fixed path for each URI and endpoint; its `.mirror.json` records
the version in which each file was last identical with the store. If the store's journal has changed since (another
driver continued the study, or it was created again under the same name), the working folder is emptied first. Only
files that changed locally since then are uploaded, the journal last, so the store's journal is never newer than its
tables. Ray and the workers write checkpoints and deployed networks to the store directly.
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

PERIOD_S = 2.0  # shortest time between two pushes
LONGEST_S = 30.0  # longest time between two pushes
VERIFIED_S = 1.0  # how long a check of the lease stays valid
STATE = ".mirror.json"
_SKIPPED = ("ray", "wandb", "lease")  # folders that Ray, the workers and the lease manage
Stamp = tuple[int, int]  # size in bytes, and modification time in ns


def is_uri(storage: str) -> bool:
    """Return whether a storage is an object store rather than a folder."""
    return "://" in storage


def work_root() -> Path:
    """Return the parent of all working folders: $XDG_CACHE_HOME/asc-tune, or ~/.cache/asc-tune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve() / "asc-tune"


def working_folder(storage: str) -> Path:
    """Return the local folder for studies of the object store `storage`. It depends on user, URI and endpoint, but not
    on the working directory."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    storage = storage.rstrip("/")
    digest = hashlib.sha256(f"{endpoint}\n{storage}".encode()).hexdigest()[:12]
    parts = urlsplit(storage)
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.netloc}{parts.path}").strip("-")[:80]
    return work_root() / f"{readable}-{digest}"


def check_store(storage: str) -> Store:
    """Return the store at the URI `storage`; StudyError, which shows no secrets, if it cannot be reached or written."""
    parts = urlsplit(storage)
    if parts.username or parts.password or re.search(r"(?i)key|secret|token|password", parts.query):
        raise StudyError(
            f"--storage {parts.scheme}://...: credentials must not be in the URI (Ray writes it into its files); set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the variables of your store, in the environment"
        )
    try:
        store = Store(storage)
        bucket = store.path.split("/")[0]
        if store.files.get_file_info(bucket).type == fs.FileType.NotFound:
            raise StudyError(f"--storage {storage}: bucket {bucket} does not exist; create it, or correct the name")
        probe = f".probe-{os.getpid()}"
        store.write(probe, b"probe")
        store.files.delete_file(f"{store.path}/{probe}")
    except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
        raise StudyError(
            f"--storage {storage} cannot be reached or written: {error}; check URI, endpoint and credentials"
        ) from error
    return store


class Mirror:
    """Synchronises `folder` with the study at `uri`. `verify` is called before each batch of writes to the store and
    raises StudyLost if another driver holds the study."""

    def __init__(self, folder: Path, uri: str, verify: Callable[[], None] = lambda: None):
        self.folder, self.store, self._verify = folder, Store(uri), verify
        self._due = 0.0
        self._agreed = self._read_state()  # file -> (stamp in the store, local stamp) of identical files

    def pull(self) -> None:
        """Download manifest, journal and tables. Local events that a driver of this machine did not upload in time are
        kept, unless another driver has continued the study since."""
        remote = self._remote_files()
        journal = {name for name in remote if name.startswith(f"{JOURNAL}/")}
        known = {name for name in self._agreed if name.startswith(f"{JOURNAL}/")}
        if known <= journal and all(self._extends(name, remote[name]) for name in journal):
            for name in journal:  # the local file is as new or newer
                self._agreed[name] = (remote[name], self._agreed.get(name, (None, (-1, -1)))[1])
        else:
            self._empty()
        self._pull(name for name, stamp in remote.items() if not self._has(name, stamp))

    def _extends(self, name: str, stamp: Stamp) -> bool:
        """Return whether a local journal segment begins with the store's copy. This is so if its driver was killed
        before it had uploaded the rest, or before it had recorded the upload."""
        local = self.folder / name
        if not local.is_file():
            return False
        agreed = self._agreed.get(name)
        return (agreed is not None and agreed[0] == stamp) or local.read_bytes().startswith(self.store.read(name))

    def _has(self, name: str, stamp: Stamp) -> bool:
        """Return whether the local file `name` is the store's version `stamp`, perhaps with later local changes."""
        return self._agreed.get(name, (None, None))[0] == stamp and (self.folder / name).is_file()

    def pull_networks(self, checkpoints: Iterable[str]) -> None:
        """Download the deployed networks in the folders `checkpoints` (relative to the study)."""
        for folder in checkpoints:
            remote = {f"{folder}/{name}": stamp for name, stamp in self.store.stamps(folder, recursive=True).items()}
            self._pull(name for name, stamp in remote.items() if not self._has(name, stamp))

    def push(self, last: bool = False) -> None:
        """Upload locally changed files. A call soon after a push does nothing, so that uploads take at most about a
        twentieth of the driver's time; the `last` push always uploads."""
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
        """Return the names of the trials whose info.json is in the store."""
        files = self.store.stamps(EXPERIMENTS, recursive=True)
        return frozenset(name.rpartition("/")[0] for name in files if name.endswith("/info.json"))

    def _remote_files(self) -> dict[str, Stamp]:
        """Return the synchronised files of the store: those directly in the study's folder, and the journal."""
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
        """Delete the local files, because the study in the store has not developed from them."""
        if self.folder.is_symlink():
            raise StudyError(
                f"{self.folder} is a symbolic link; expected a folder, because its content is replaced: remove the link"
            )
        self._agreed = {}
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        make_folder(self.folder)

    def _changed(self) -> list[Path]:
        """Return the local files that changed since they were last identical with the store's files."""
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
            return {}  # no file is known to be identical

    def _write_state(self) -> None:
        content = {"uri": self.store.uri, "agreed": {name: [*a, *b] for name, (a, b) in self._agreed.items()}}
        make_folder(self.folder)
        replace_text(self.folder / STATE, json.dumps(content))


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
