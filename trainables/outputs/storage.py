"""Access to the files of a study: in a folder on a local or shared disk, or in an object store (`s3://bucket/path`).

Folders and object stores are read and written with pyarrow, as Ray does. Credentials and the endpoint of an object
store are set in environment variables only (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION,
AWS_ENDPOINT_URL, ...). They must not be parts of the URI, because Ray would write them to its files.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from pyarrow import fs

from data.files import make_folder, parse_json, replace_folder, replacing
from data.seals import SEAL, SealError, check_seal, sealed_content
from data.untrusted import credentials_in

LEASE = "lease"  # folder in which drivers claim a study in an object store, see tune/study/lease.py
KEPT = 4  # number of checkpoints kept of each trial: if the newest one is damaged, an older one is restored
_T = TypeVar("_T")


class Store:
    """The files in the folder `uri`, a local path or the URI of a folder in an object store.

    In each method, `name` is the path of a file or folder relative to this folder. ValueError if the URI is invalid or
    contains credentials; OSError for an object whose name would be a path outside this folder (`a/../../b`).
    """

    def __init__(self, uri: str):
        if "://" in uri and (problem := credentials_in(uri)):
            raise ValueError(
                f"the URI {uri.partition('://')[0]}://... contains {problem}; expected no credentials: set them in the "
                "environment, for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        self.uri = uri.rstrip("/")
        self.files, self.path = fs.FileSystem.from_uri(self.uri if "://" in uri else str(Path(uri).resolve()))

    @property
    def local(self) -> Path | None:
        """The local path of the store's folder; None if the folder is in an object store."""
        return Path(self.path) if isinstance(self.files, fs.LocalFileSystem) else None

    def push(self, local: Path, name: str) -> None:
        """Copy the local file or folder `local` to the path `name` in the store.

        Files of the same name are replaced; other files in an existing folder are kept.
        """
        target = f"{self.path}/{name}"
        self.files.create_dir(target if local.is_dir() else target.rpartition("/")[0])
        fs.copy_files(str(local), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.files)

    def pull(self, name: str, local: Path) -> None:
        """Copy the file or folder `name` of the store to the local path `local`.

        No other process sees a partly copied file. If the folder `local` does not exist yet, it appears only after all
        its files were copied. If it exists, files of the same name are replaced one by one, and other files are kept.
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
        """Return the content of the file `name`; raise FileNotFoundError if it does not exist."""
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write `content` to the file `name`; an existing file is replaced."""
        target = f"{self.path}/{name}"
        self.files.create_dir(target.rpartition("/")[0])
        with self.files.open_output_stream(target) as stream:
            stream.write(content)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return (size in bytes, modification time in ns since 1970) of the file `name`.

        Raise FileNotFoundError if the file does not exist.
        """
        info = self.files.get_file_info(f"{self.path}/{name}")
        if info.type != fs.FileType.File:
            raise FileNotFoundError(
                f"{self.uri}/{name} does not exist or is not a file; expected a file of a study: check whether the "
                "study was moved or deleted"
            )
        return info.size, info.mtime_ns

    def stamps(self, name: str, recursive: bool = False) -> dict[str, tuple[int, int]]:
        """Return a dict from each file in the folder `name` to (size in bytes, modification time in ns since 1970).

        The keys are paths relative to the folder `name`. With `recursive`, files in sub-folders are included. If the
        folder does not exist, the dict is empty. Symbolic links, which a store on a disk may have, are left out:
        asc-tune creates none, and they could lead out of the store or in a circle.
        """
        if self.local:
            folder = self.local / name
            paths = [] if self.is_linked(name) else folder.rglob("*") if recursive else folder.glob("*")
            found = {}
            for path in paths:
                with suppress(FileNotFoundError):  # deleted at this moment
                    if S_ISREG((stat := path.lstat()).st_mode):
                        found[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
            return found
        top = f"{self.path}/{name}".rstrip("/")
        found = self.files.get_file_info(fs.FileSelector(top, allow_not_found=True, recursive=recursive))
        return {
            self._checked(i.path[len(top) + 1 :]): (i.size, i.mtime_ns) for i in found if i.type == fs.FileType.File
        }

    def generation(self) -> int:
        """Return the number of the latest driver that has claimed the study in this store; 0 if there is none.

        A driver claims a study with a file `lease/<number>-<owner>.json` (tune/study/lease.py). The number of a driver
        is higher than those of earlier drivers.
        """
        numbers = (name.partition("-")[0] for name in self.names(LEASE))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def names(self, name: str) -> list[str]:
        """Return the sorted names of the files and folders in the folder `name`; [] if the folder does not exist."""
        found = self.files.get_file_info(fs.FileSelector(f"{self.path}/{name}", allow_not_found=True))
        return sorted(self._checked(info.base_name) for info in found)

    def is_linked(self, name: str) -> bool:
        """Return whether a part of the path `name` in a store on a disk is a symbolic link."""
        return self.local is not None and os.path.realpath(self.local / name) != str(self.local.resolve() / name)

    def _checked(self, name: str) -> str:
        """Return `name`, the relative path of a listed object; OSError if it leads out of its folder.

        The keys of an object store are texts, which may contain "..": on a local disk, this is the parent folder.
        """
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise OSError(
                errno.EINVAL,
                f"{self.uri} has an object with the name {name!r}; expected no '.', '..' or empty part in a name: "
                "delete this object",
            )
        return name

    def sizes(self, name: str, recursive: bool = False) -> dict[str, int]:
        """Return a dict from each file in the folder `name` to its size in bytes.

        The keys are paths relative to the folder `name`. With `recursive`, files in sub-folders are included.
        """
        return {name: size for name, (size, _) in self.stamps(name, recursive).items()}

    def delete(self, name: str) -> None:
        """Delete the folder `name` and its content."""
        self.files.delete_dir(f"{self.path}/{name}")


def _newest_first(names: list[str]) -> list[str]:
    """Return all `names`, sorted by the number in them (run009-1f0c, run1000-a2b3), the highest number first.

    The numbers have leading zeros up to a fixed width (three digits for runs), so a longer name has a higher number.
    """
    return sorted(names, key=lambda name: (len(name), name), reverse=True)


class TrialCheckpoints:
    """The checkpoints of the trial with the name `trial`: the folders `<run>/<trial>/checkpoint_*` in the store `uri`.

    Each driver of a study writes to its own folder `<run>`, so a resumed trial has checkpoints in several such folders.
    """

    def __init__(self, uri: str, trial: str):
        self.store, self.trial = Store(uri), trial

    def newest_first(self) -> list[str]:
        """Return the paths of the trial's checkpoints in the store, newest first."""
        found = []
        for run in _newest_first(self.store.names("")):
            folder = f"{run}/{self.trial}"
            names = _newest_first(self.store.names(folder))
            found += [f"{folder}/{name}" for name in names if name.startswith("checkpoint_")]
        # asc-tune creates no links, so somebody else put it there, and what it leads to is neither read nor deleted
        return [name for name in found if not self.store.is_linked(name)]

    def load_newest(self, load: Callable[[Path], _T], warn: Callable[[str], None]) -> _T | None:
        """Call `load` with the local folder of the newest valid checkpoint, and return the result of `load`.

        If a checkpoint is invalid, `warn` is called with a message, and the next older checkpoint is tried. If there
        is no valid checkpoint, None is returned.
        """
        for name in self.newest_first():
            try:
                with self.opened(name) as folder:
                    check_seal(folder)
                    return load(folder)
            except SealError as error:
                warn(f"trial {self.trial}: checkpoint {name} is invalid ({error}); trying the next older one")
        return None

    def clear(self, keep: int) -> None:
        """Delete all checkpoints that are older than the `keep` newest complete ones; 0 deletes all checkpoints.

        Incomplete checkpoints (from a full disk or a killed process) do not count as one of the `keep` checkpoints.
        """
        for name in self.newest_first():
            if keep <= 0:
                self.store.delete(name)
            elif self._is_complete(name):
                keep -= 1

    def _is_complete(self, name: str) -> bool:
        """Return whether checkpoint `name` has exactly the files that its seal.json lists, with the listed sizes.

        The hashes in seal.json are not compared, because that would require reading all files.
        """
        sizes = self.store.sizes(name, recursive=True)
        if SEAL not in sizes:  # missing, or no file: a pipe would never be read to its end
            return False
        try:
            files, _ = sealed_content(parse_json(self.store.read(f"{name}/{SEAL}"), f"{name}/{SEAL}"))
        except (OSError, ValueError, RecursionError):
            return False
        return sizes.keys() == {SEAL, *files} and all(sizes[file] == size for file, (size, _) in files.items())

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield a local folder with the content of checkpoint `name`, a path in the store or an absolute one.

        If the store is an object store, this is a private temporary copy, which is deleted when the context is left.
        """
        if self.store.local:
            yield self.store.local / name
            return
        with tempfile.TemporaryDirectory(prefix="asc-tune-") as copy:
            self.store.pull(name.removeprefix(f"{self.store.path}/"), Path(copy))
            yield Path(copy)
