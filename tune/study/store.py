"""A study in an object store: the driver works in a local folder and synchronises it with the store.

    mirror = Mirror(folder, "s3://bucket/studies/name", lease.verify)    # lease: the driver's StoreLease on the study
    mirror.pull()                # downloads manifest, journal and tables from the store to `folder`
    mirror.push()                # uploads the files that this driver changed; called often, does nothing most times

This local folder, the working folder, has a fixed path for each URI and endpoint. Its file `.mirror.json` lists all
transferred files, with size and modification time of both copies at the last transfer. A copy with other values has
changed since then.

- Download: if the local journal does not begin with the store's journal, the working folder is emptied first. This
  happens if a driver on another machine continued the study, or if the study was deleted and created again.
- Upload: only files that changed in the folder after the last transfer are uploaded. The journal is uploaded last, so
  the journal in the store is never newer than the tables.

Ray and the workers write checkpoints and deployed networks to the store directly.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from data.files import make_folder, replace_text
from data.untrusted import credentials_in, is_relative_path
from trainables.outputs.records import EXPERIMENTS, REFIT
from trainables.outputs.storage import Store
from tune.study.journal import FOLDER as JOURNAL
from tune.study.manifest import StudyError

PERIOD_S = 2.0  # shortest time between two uploads
LONGEST_S = 30.0  # longest time between two uploads of a driver that calls `push` often
VERIFIED_S = 1.0  # how long a check of the lease stays valid during a push
STATE = ".mirror.json"
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file", "http", "https")
_SKIPPED = ("ray", "wandb", "lease", REFIT)  # folders that Ray, the workers, the lease and a refit's mirror manage
Stamp = tuple[int, int]  # version of a file: size in bytes, modification time in ns


def is_uri(storage: str) -> bool:
    """Return True if `storage` is the URI of an object store, and False if it is the path of a folder.

    Raise StudyError if the URI is not valid (`check_uri`).
    """
    check_uri(storage)
    return "://" in storage


def check_uri(text: str) -> None:
    """Raise StudyError if `text`, a path or URI, contains credentials (the message does not show them), or is a URI
    with a query (?region=...), without two slashes (s3:/bucket), or with an invalid name (s3://bucket/a/../b)."""
    scheme, colon, rest = text.partition(":")
    if problem := credentials_in(text):
        raise StudyError(
            f"the URI {scheme}:... contains {problem}; expected no credentials, because Ray would write them to its "
            "files: remove them, and set the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "the variables of your store"
        )
    if colon and not rest.startswith("//") and (scheme.lower() in _SCHEMES or re.match(r"\w[\w.+-]+:/", text)):
        raise StudyError(
            f"{text} is not a URI; expected two slashes after the scheme: write {scheme}://{rest.lstrip('/')}, or "
            f"./{text} for a folder of this name"
        )
    if "://" in text and "?" in text:
        raise StudyError(
            f"the URI {text.partition('?')[0]}?... has parameters; expected none: set the region and the endpoint in "
            "the environment (AWS_DEFAULT_REGION, AWS_ENDPOINT_URL)"
        )
    if "://" in text and not is_relative_path(text.partition("://")[2].strip("/")):
        raise StudyError(
            f"{text!r} is not a valid URI; expected scheme://bucket/path with names of letters, digits, '.', '_' and "
            "'-': correct the URI"
        )


def work_root() -> Path:
    """Return the folder for local copies of studies in object stores: $XDG_CACHE_HOME/asc-tune or ~/.cache/asc-tune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve() / "asc-tune"


def working_folder(storage: str) -> Path:
    """Return the local folder for the studies at the URI `storage`; a study's working folder is a folder in it.

    `storage` is the value of --storage, such as s3://bucket/studies. The returned path depends on the user, the URI and
    the endpoint, but not on the current directory.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    storage = storage.rstrip("/")
    digest = hashlib.sha256(f"{endpoint}\n{storage}".encode()).hexdigest()[:12]
    parts = urlsplit(storage)
    readable = re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.netloc}{parts.path}").strip("-")[:80]
    return work_root() / f"{readable}-{digest}"


def check_store(storage: str) -> Store:
    """Return the object store at the URI `storage`, after a file was written and deleted there as a test.

    Raise StudyError if the URI contains credentials, or if the store cannot be reached or written.
    """
    check_uri(storage)
    try:
        store = Store(storage)
        bucket = store.path.split("/")[0]
        if store.files.get_file_info(bucket).type == fs.FileType.NotFound:
            raise StudyError(f"--storage {storage}: bucket {bucket} does not exist: create it or correct the URI")
        probe = f".probe-{secrets.token_hex(8)}"
        store.write(probe, b"probe")
        store.files.delete_file(f"{store.path}/{probe}")
    except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
        raise StudyError(
            f"--storage {storage} cannot be reached or written: {error}; check URI, endpoint and credentials"
        ) from error
    return store


class Mirror:
    """Synchronises the local folder `folder` with the study at `uri` in an object store.

    `verify` is called before writes to the store. It must raise StudyLost if another driver has taken over the study.
    """

    def __init__(self, folder: Path, uri: str, verify: Callable[[], None] = lambda: None):
        self.folder, self.store, self._verify = folder, Store(uri), verify
        self._due = 0.0
        self._agreed = self._read_state()  # file -> (stamp in the store, local stamp) at its last transfer

    def pull(self) -> None:
        """Download manifest, journal and tables to the local folder.

        If a driver on this machine was killed before an upload, only the local journal has its last events. They are
        kept, unless another driver has continued the study.
        """
        remote = self._remote_files()
        journal = {name for name in remote if name.startswith(f"{JOURNAL}/")}
        known = {name for name in self._agreed if name.startswith(f"{JOURNAL}/")}
        if known <= journal and all(self._extends(name, remote[name]) for name in journal):
            for name in journal:  # the local file has the store's content, and perhaps more
                self._agreed[name] = (remote[name], self._agreed.get(name, (None, (-1, -1)))[1])
        else:
            self._empty()
        self._pull(name for name, stamp in remote.items() if not self._has(name, stamp))

    def _extends(self, name: str, stamp: Stamp) -> bool:
        """Return whether the local journal file `name` begins with the content of the file `name` in the store.

        `stamp` is (size, modification time) of the file in the store. The local file is longer if a driver was killed
        before the upload.
        """
        local = self.folder / name
        if not local.is_file():
            return False
        agreed = self._agreed.get(name)
        return (agreed is not None and agreed[0] == stamp) or local.read_bytes().startswith(self.store.read(name))

    def _has(self, name: str, stamp: Stamp) -> bool:
        """Return whether the present version of the file `name` in the store was transferred before, and the local file
        still exists. `stamp` is (size, modification time) of this version."""
        return self._agreed.get(name, (None, None))[0] == stamp and (self.folder / name).is_file()

    def pull_networks(self, checkpoints: Iterable[str]) -> None:
        """Download the deployed networks in the folders `checkpoints`, such as "experiments/t0003/step0"."""
        for folder in checkpoints:
            remote = {f"{folder}/{name}": stamp for name, stamp in self.store.stamps(folder, recursive=True).items()}
            self._pull(name for name, stamp in remote.items() if not self._has(name, stamp))

    def push(self, last: bool = False) -> None:
        """Upload the files that changed in the local folder. Raise StudyLost if another driver took over the study.

        After an upload that took t seconds, calls do nothing for 20 t seconds (at least PERIOD_S, at most LONGEST_S),
        so that the driver spends little time on uploads. With `last=True`, files are uploaded in any case.
        """
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
        """Return the names of the trials that have an info.json in the store, uploaded by any driver.

        A trial of this set may still be running, because info.json is first written when a network is measured or the
        trial ends. The journal tells which trials have ended.
        """
        files = self.store.stamps(EXPERIMENTS, recursive=True)
        return frozenset(name.rpartition("/")[0] for name in files if name.endswith("/info.json"))

    def _remote_files(self) -> dict[str, Stamp]:
        """Return {file name: (size, modification time)} of the files in the store that `pull` downloads: the files of
        the journal, and the files directly in the study's folder, such as study.json."""
        found = self.store.stamps("")
        return found | {f"{JOURNAL}/{name}": stamp for name, stamp in self.store.stamps(JOURNAL).items()}

    def _pull(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            local = self.folder / name
            if not Path(os.path.realpath(local.parent)).is_relative_to(os.path.realpath(self.folder)):
                raise OSError(errno.ELOOP, f"{local.parent} is a symbolic link out of the study: remove the link")
            make_folder(local.parent)
            self.store.pull(name, local)
            self._agree(name, _stamp(local))
        self._write_state()

    def _agree(self, name: str, here: Stamp) -> None:
        self._agreed[name] = (self.store.stamp(name), here)

    def _empty(self) -> None:
        """Delete all files in the local folder: they belong to a version of the study that the store has replaced."""
        if self.folder.is_symlink():
            raise StudyError(
                f"{self.folder}, the local copy of {self.store.uri}, is a symbolic link; expected a folder, because "
                "its content must be replaced. Remove the link and start again"
            )
        self._agreed = {}
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        make_folder(self.folder)

    def _changed(self) -> list[Path]:
        """Return the paths of the local files that changed after their last transfer from or to the store."""
        found = []
        for top in self.folder.iterdir():
            if top.name in _SKIPPED or top.name.startswith(".") or top.is_symlink():
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
            return {}  # missing or damaged: then every file counts as changed

    def _write_state(self) -> None:
        content = {"uri": self.store.uri, "agreed": {name: [*a, *b] for name, (a, b) in self._agreed.items()}}
        make_folder(self.folder)
        replace_text(self.folder / STATE, json.dumps(content))


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
