"""Locks, durable atomic writes, and a reader of JSON files. No other file of the project renames files or folders.

    with locked(folder / ".lock"): ...      # only one process at a time executes the block
    replace_text(path, text)                # atomic write: readers see the old or the new content, never a part
    replace_bytes(path, data)               # the same for bytes
    with replacing(path) as temporary:      # the same for a library that writes the file itself
        torch.save(weights, temporary)
    replace_folder(folder, write)           # the same for a folder, which your function write(temporary_folder) fills
    read_json(path)["epochs"]               # a damaged file raises ValueError with the path, not an error of the parser

All writes take the same steps: write a temporary file in the same directory, fsync it, rename it, fsync the
directory. Without the first fsync, a power loss can leave an empty file under the final name. Without the second fsync,
the rename can be lost (Pillai et al. 2014, "All File Systems Are Not Created Equal"). When a function returns, its
result is on disk; only with `durable=False`, the fsyncs are omitted.

A killed process leaves at most a hidden temporary file or folder `.<name>.<8 hex digits>.tmp`, or, if it replaced a
folder, the former folder as `.<name>.<8 hex digits>.old`. `remove_temporary` deletes them; `mend_folder` restores a
former folder first, if necessary. This file uses only the standard library, so every package may import it.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SILENT_S = 5.0  # seconds of waiting for a lock before a warning is logged
_LOG = logging.getLogger(__name__)
# temporary names: `name` is the final name; kind "tmp" is new content, "old" is a folder that was being replaced
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors if directories cannot be fsynced


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` during a `with` block.

    `path` is an existing directory, or a lock file, which is created if it is missing. If another process holds the
    lock, wait for it, and log a warning after `SILENT_S` seconds. With `wait=False`, raise BlockingIOError instead of
    waiting. The operating system releases the lock when the process ends, even if it is killed. The lock
    works between processes of one machine, and between machines on a shared file system that implements flock.
    """
    path = Path(path)
    # O_NOFOLLOW: somebody else's link in a shared folder must not create a file elsewhere
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            message = (
                "waiting until another process releases the lock %s; this process then continues (if the other process "
                "is paused, resume it)"
            )
            warning = threading.Timer(SILENT_S, _LOG.warning, [message, path])
            warning.daemon = True
            warning.start()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            finally:
                warning.cancel()
        yield
    finally:
        os.close(handle)


def replace_text(path: Path, text: str, durable: bool = True) -> None:
    """Write `text` in UTF-8 to the file at `path`; readers see the old or the new content, never a part.

    `durable=False` omits the fsyncs, for a file that can be created again after a power loss.
    """
    replace_bytes(path, text.encode(), durable)


def replace_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write `data` to the file at `path`, with the guarantees of `replace_text`."""
    with replacing(path, durable) as temporary, temporary.open("xb") as stream:  # x: never follow a link
        stream.write(data)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path; the file that the caller writes there replaces `path` when the block ends.

    If the block raises, the temporary file is deleted and the file at `path` stays as it was. The temporary name ends
    in `.tmp`: pass the format explicitly to a library that would derive it from the file name. `durable=False` omits
    the fsyncs.
    """
    path = Path(path)
    temporary = _temporary(path, "tmp")
    try:
        yield temporary
        if durable:
            fsync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_folder(path.parent)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Create `folder`, or replace it, with the content that `write(temporary_folder)` writes.

    Missing parent directories are created. The caller must be the only writer of `folder`. If `write` raises, an
    existing `folder` stays as it was. An existing folder is first renamed to a temporary name, then the new folder is
    renamed to `folder`, and then the former folder is deleted; so readers never see a half deleted folder. If the
    process is killed between the two renames, `folder` does not exist until `mend_folder` restores the former one.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    new, old = _temporary(folder, "tmp"), _temporary(folder, "old")
    new.mkdir()
    try:
        write(new)
        fsync_tree(new)
        if folder.is_dir():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(folder: Path) -> None:
    """Restore `folder` and delete temporary folders after a process was killed during `replace_folder(folder, ...)`.

    If `folder` does not exist, the newest former folder (`.<name>.<8 hex digits>.old`) is renamed to `folder`. All
    other temporary folders of this name are deleted, also those of a running process: the caller must hold a lock that
    every writer of `folder` takes.
    """
    folder = Path(folder)
    leftovers = [(path, match["kind"]) for path, match in _temporaries(folder.parent) if match["name"] == folder.name]
    old = sorted((path for path, kind in leftovers if kind == "old"), key=lambda path: path.stat().st_mtime_ns)
    if old and not folder.exists():
        old[-1].rename(folder)
        fsync_folder(folder.parent)
    for path, _ in leftovers:
        _remove(path)


def remove_temporary(folder: Path, prefix: str) -> None:
    """Delete the temporary files and folders in `folder` whose final name would start with `prefix`.

    They are those that killed processes left. Those of a running process would be deleted, too, so the caller must hold
    a lock that every writer of such names takes.
    """
    for path, match in _temporaries(Path(folder)):
        if match["name"].startswith(prefix):
            _remove(path)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, and fsync the parent of each new directory."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    """Fsync the file at `path`: wait until its content is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    """Fsync the directory at `path`: wait until created, renamed and deleted names are on disk.

    On a file system that cannot fsync directories, nothing is done.
    """
    try:
        fsync_file(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise


def fsync_tree(folder: Path) -> None:
    """Fsync `folder` and all files and directories below it; symbolic links are skipped."""
    for path in Path(folder).iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            fsync_tree(path)
        else:
            fsync_file(path)
    fsync_folder(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`; ValueError if the file is damaged, OSError if it is missing."""
    return parse_json(Path(path).read_bytes(), path)


def parse_json(content: bytes, where: Path | str) -> dict[str, Any]:
    """Return the JSON object `content`, which was read from the file `where`; ValueError if it is damaged."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # a few kB of brackets exceed the recursion limit
        raise ValueError(f"{where} is damaged ({error}); expected JSON: restore the file from a copy") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ValueError(f"{where} holds a {kind}; expected a JSON object: restore the file from a copy")
    return found


def _temporary(path: Path, kind: str) -> Path:
    """Return a hidden temporary name for `path` in the same directory; `kind` ("tmp" or "old") is its extension.

    The name contains random digits instead of a process id, because two machines can have the same process ids.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _temporaries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Return the path of each temporary file or folder in `folder`, with its match of the pattern `_TEMPORARY`.

    The groups of the match are "name" (the final name) and "kind" ("tmp" or "old").
    """
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.glob(".*"))
    return [(path, match) for path, match in found if match]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
