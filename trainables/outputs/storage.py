"""Storage of a study's folder: on a local or shared disk, or in an object store (`s3://bucket/path`).

Both are read and written with pyarrow, as in Ray. Credentials and the endpoint come from the environment only
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, ...): as a part of a path they would
be written to Ray's files.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from data.files import SEAL, SealError, check_seal, make_folder, replace_folder, replacing

LEASE = "lease"  # folder of the drivers' claims, see tune/study/lease.py
KEPT = 4  # number of newest checkpoints kept of a trial: if one is damaged, the one before it is used
_T = TypeVar("_T")


class Store:
    """The files in the folder `uri`; all names are relative to this folder."""

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        self.files, self.path = fs.FileSystem.from_uri(self.uri if "://" in uri else str(Path(uri).resolve()))

    @property
    def local(self) -> Path | None:
        """The folder as a local path; None for an object store."""
        return Path(self.path) if isinstance(self.files, fs.LocalFileSystem) else None

    def push(self, local: Path, name: str) -> None:
        """Copy the local file or folder `local` to `name` in the store."""
        target = f"{self.path}/{name}"
        self.files.create_dir(target if local.is_dir() else target.rpartition("/")[0])
        fs.copy_files(str(local), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.files)

    def pull(self, name: str, local: Path) -> None:
        """Copy the file or folder `name` of the store to `local`. An interrupted pull leaves no partial file there.

        If the folder `local` does not exist, it appears when all its files are copied. If it exists, files of the same
        name are replaced one by one, and other files are kept.
        """
        if self.files.get_file_info(f"{self.path}/{name}").type != fs.FileType.Directory:
            self._pull_file(name, local)
        elif local.exists():
            self._pull_files(name, local)
        else:
            replace_folder(local, lambda temporary: self._pull_files(name, temporary))

    def _pull_files(self, name: str, local: Path) -> None:
        for file in self.sizes(name, recursive=True):
            self._pull_file(f"{name}/{file}", local / file)

    def _pull_file(self, name: str, local: Path) -> None:
        make_folder(local.parent)
        with replacing(local) as temporary:
            source, target = f"{self.path}/{name}", fs.LocalFileSystem()
            fs.copy_files(source, str(temporary), source_filesystem=self.files, destination_filesystem=target)

    def read(self, name: str) -> bytes:
        """Return the content of the file `name`; FileNotFoundError if it does not exist."""
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write `content` to the file `name`, replacing it."""
        target = f"{self.path}/{name}"
        self.files.create_dir(target.rpartition("/")[0])
        with self.files.open_output_stream(target) as stream:
            stream.write(content)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size (bytes) and modification time (ns) of the file `name`; FileNotFoundError if it does not exist."""
        info = self.files.get_file_info(f"{self.path}/{name}")
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self.uri}/{name}")
        return info.size, info.mtime_ns

    def stamps(self, name: str, recursive: bool = False) -> dict[str, tuple[int, int]]:
        """Return (size in bytes, modification time in ns) of each file in the folder `name`, by file name.

        With `recursive`, files in its sub-folders are included.
        """
        top = f"{self.path}/{name}".rstrip("/")
        found = self.files.get_file_info(fs.FileSelector(top, allow_not_found=True, recursive=recursive))
        return {i.path[len(top) + 1 :]: (i.size, i.mtime_ns) for i in found if i.type == fs.FileType.File}

    def generation(self) -> int:
        """Return the highest number of a driver's claim on this study (<number>-<owner>.json in LEASE); 0 if none."""
        numbers = (name.partition("-")[0] for name in self.names(LEASE))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def names(self, name: str) -> list[str]:
        """Return the sorted names of files and folders in the folder `name`; empty if it does not exist."""
        found = self.files.get_file_info(fs.FileSelector(f"{self.path}/{name}", allow_not_found=True))
        return sorted(info.base_name for info in found)

    def sizes(self, name: str, recursive: bool = False) -> dict[str, int]:
        """Return the size in bytes of each file in the folder `name`; with `recursive`, also in its sub-folders."""
        return {name: size for name, (size, _) in self.stamps(name, recursive).items()}

    def delete(self, name: str) -> None:
        """Remove the folder `name` and its content."""
        self.files.delete_dir(f"{self.path}/{name}")


def _newest_first(names: list[str]) -> list[str]:
    """Sort numbered names (run009, run1000), highest number first."""
    return sorted(names, key=lambda name: (len(name), name), reverse=True)


class TrialCheckpoints:
    """The checkpoints of a trial, written by all drivers that ran it: `<store>/<run>/<trial>/checkpoint_*`."""

    def __init__(self, uri: str, trial: str):
        self.store, self.trial = Store(uri), trial

    def newest_first(self) -> list[str]:
        """Return the names of the checkpoints, newest first."""
        found = []
        for run in _newest_first(self.store.names("")):
            folder = f"{run}/{self.trial}"
            names = _newest_first(self.store.names(folder))
            found += [f"{folder}/{name}" for name in names if name.startswith("checkpoint_")]
        return found

    def load_newest(self, load: Callable[[Path], _T], warn: Callable[[str], None]) -> _T | None:
        """Return the result of `load` for the newest valid checkpoint; None if there is none.

        `warn` is called with a message for each invalid checkpoint that is skipped.
        """
        for name in self.newest_first():
            try:
                with self._opened(name) as folder:
                    check_seal(folder)
                    return load(folder)
            except SealError as error:
                warn(f"{self.trial}: checkpoint {name} is invalid and skipped: {error}")
        return None

    def clear(self, keep: int) -> None:
        """Remove the checkpoints that are older than the `keep` newest complete ones.

        An incomplete checkpoint (left by a full disk or a kill) does not count as one of the `keep`.
        """
        for name in self.newest_first():
            if keep <= 0:
                self.store.delete(name)
            elif self._is_complete(name):
                keep -= 1

    def _is_complete(self, name: str) -> bool:
        """Return whether all files in the seal of checkpoint `name` exist with their sizes; hashes are not checked."""
        sizes = self.store.sizes(name, recursive=True)
        try:
            with self.store.files.open_input_stream(f"{self.store.path}/{name}/{SEAL}") as stream:
                sealed = json.loads(stream.read())["content"]["files"]
            return all(sizes.get(file) == size for file, (size, _) in sealed.items())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @contextmanager
    def _opened(self, name: str) -> Iterator[Path]:
        """Yield the local folder of checkpoint `name`; for an object store, a copy that is removed afterwards."""
        if self.store.local:
            yield self.store.local / name
            return
        with tempfile.TemporaryDirectory(prefix="asc-tune-") as copy:
            self.store.pull(name, Path(copy))
            yield Path(copy)
