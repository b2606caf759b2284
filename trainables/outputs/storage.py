"""A study's folder wherever it lies: on a local or shared disk, or in an object store (`s3://bucket/path`).

pyarrow reads and writes both, as Ray does. Credentials and an own endpoint come from the environment alone
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, ...): written into a path they would
end up in Ray's files.
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
KEPT = 4  # newest checkpoints of a trial: a damaged one falls back to the one before
_T = TypeVar("_T")


class Store:
    """Files below `uri`, by names relative to it."""

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        self.files, self.path = fs.FileSystem.from_uri(self.uri if "://" in uri else str(Path(uri).resolve()))

    @property
    def local(self) -> Path | None:
        """The folder, where it is one."""
        return Path(self.path) if isinstance(self.files, fs.LocalFileSystem) else None

    def push(self, local: Path, name: str) -> None:
        """Copy a file or a folder to `name`."""
        target = f"{self.path}/{name}"
        self.files.create_dir(target if local.is_dir() else target.rpartition("/")[0])
        fs.copy_files(str(local), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.files)

    def pull(self, name: str, local: Path) -> None:
        """Copy the file or folder `name` to `local`; an interrupted pull leaves no partial file there.

        A folder that does not exist locally appears when all its files have arrived. In one that exists, the files of
        the store replace those of the same name, one by one, and other files stay.
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
        """The content of a file; FileNotFoundError where there is none."""
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole."""
        target = f"{self.path}/{name}"
        self.files.create_dir(target.rpartition("/")[0])
        with self.files.open_output_stream(target) as stream:
            stream.write(content)

    def stamp(self, name: str) -> tuple[int, int]:
        """Bytes and time of change (ns) of a file; FileNotFoundError where there is none."""
        info = self.files.get_file_info(f"{self.path}/{name}")
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self.uri}/{name}")
        return info.size, info.mtime_ns

    def stamps(self, name: str, recursive: bool = False) -> dict[str, tuple[int, int]]:
        """Name -> bytes and time of change (ns) of the files directly in the folder `name`; with `recursive`, those
        below, too."""
        top = f"{self.path}/{name}".rstrip("/")
        found = self.files.get_file_info(fs.FileSelector(top, allow_not_found=True, recursive=recursive))
        return {i.path[len(top) + 1 :]: (i.size, i.mtime_ns) for i in found if i.type == fs.FileType.File}

    def generation(self) -> int:
        """The highest number of a driver's claim on the study here (<number>-<owner>.json in LEASE); 0 without any."""
        numbers = (name.partition("-")[0] for name in self.names(LEASE))
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def names(self, name: str) -> list[str]:
        """What lies directly in the folder `name`, sorted; nothing where there is no such folder."""
        found = self.files.get_file_info(fs.FileSelector(f"{self.path}/{name}", allow_not_found=True))
        return sorted(info.base_name for info in found)

    def sizes(self, name: str, recursive: bool = False) -> dict[str, int]:
        """Name -> bytes of the files directly in the folder `name`; with `recursive`, those below, too."""
        return {name: size for name, (size, _) in self.stamps(name, recursive).items()}

    def delete(self, name: str) -> None:
        """Remove the folder `name` and all in it."""
        self.files.delete_dir(f"{self.path}/{name}")


def _newest_first(names: list[str]) -> list[str]:
    """Numbered names (run009, run1000), the highest number first."""
    return sorted(names, key=lambda name: (len(name), name), reverse=True)


class TrialCheckpoints:
    """A trial's checkpoints, of every driver that has run it: `<store>/<run>/<trial>/checkpoint_*`."""

    def __init__(self, uri: str, trial: str):
        self.store, self.trial = Store(uri), trial

    def newest_first(self) -> list[str]:
        found = []
        for run in _newest_first(self.store.names("")):
            folder = f"{run}/{self.trial}"
            names = _newest_first(self.store.names(folder))
            found += [f"{folder}/{name}" for name in names if name.startswith("checkpoint_")]
        return found

    def load_newest(self, load: Callable[[Path], _T], tell: Callable[[str], None]) -> _T | None:
        """What `load` makes of the newest checkpoint that is whole; None when there is none. `tell` hears of each one
        that is passed over."""
        for name in self.newest_first():
            try:
                with self._opened(name) as folder:
                    check_seal(folder)
                    return load(folder)
            except SealError as error:
                tell(f"{self.trial}: {name} is passed over: {error}")
        return None

    def clear(self, keep: int) -> None:
        """Remove what is older than the `keep` newest whole ones: a full disk or a kill may have left halves since."""
        for name in self.newest_first():
            if keep <= 0:
                self.store.delete(name)
            elif self._is_whole(name):
                keep -= 1

    def _is_whole(self, name: str) -> bool:
        """Whether all that the seal names is there in its size; hashes are for who loads it."""
        sizes = self.store.sizes(name, recursive=True)
        try:
            with self.store.files.open_input_stream(f"{self.store.path}/{name}/{SEAL}") as stream:
                sealed = json.loads(stream.read())["content"]["files"]
            return all(sizes.get(file) == size for file, (size, _) in sealed.items())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @contextmanager
    def _opened(self, name: str) -> Iterator[Path]:
        """The checkpoint's folder, here: as it lies, or a copy for as long as it is needed."""
        if self.store.local:
            yield self.store.local / name
            return
        with tempfile.TemporaryDirectory(prefix="asc-tune-") as copy:
            self.store.pull(name, Path(copy))
            yield Path(copy)
