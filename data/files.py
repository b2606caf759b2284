"""Locks, durable atomic writes and seals; no other file of the project renames files or folders.

    with locked(folder / ".lock"): ...                       one process at a time
    replace_text(path, text); replace_bytes(path, data)      readers see the old or the new content, never a partial one
    with replacing(path) as temporary: save(temporary)       for a library that writes the file itself
    replace_folder(folder, write)                            write(temporary) fills the new folder
    seal(folder, epochs=3); check_seal(folder)["epochs"]     check that a folder is complete, also after a copy or move

All writes take the same steps: write a temporary file in the same directory, fsync it, rename it, fsync the
directory. Without the first fsync a power loss can leave an empty file under the final name; without the second, the
rename itself can be lost (Pillai et al. 2014, "All File Systems Are Not Created Equal"). When a function returns, its
result is on disk. A killed process leaves at most a hidden `.<name>.<8 hex digits>.tmp` or `.old` behind:
`remove_temporary` and `mend_folder` clean up. Only the standard library is used, so every package may import this file.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "seal.json"
FORMAT = 1  # format version of the seal
SILENT_S = 5.0  # seconds of waiting for a lock before the log mentions it
_LOG = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # error codes of file systems that do not support it


class SealError(ValueError):
    """A sealed folder is incomplete or damaged."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path`: a lock file, which is created, or an existing directory.

    If another process holds the lock: with `wait`, wait for it (and log a warning after `SILENT_S` seconds); without,
    raise BlockingIOError. The operating system releases the lock when the process ends, however it ends. The lock works
    between processes of one machine, and between machines on a shared file system that implements flock.
    """
    path = Path(path)
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            message = "waiting for another process, which holds the lock %s (it may be paused)"
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
    """Replace the file at `path` by `text` in UTF-8.

    With `durable=False` nothing is fsynced, for a file that can be created again; readers still see the old or the new
    content.
    """
    replace_bytes(path, text.encode(), durable)


def replace_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace the file at `path` by `data`."""
    with replacing(path, durable) as temporary, temporary.open("xb") as stream:  # x: never follow an existing link
        stream.write(data)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the directory of `path`; on success the file written there replaces `path`.

    On an error the temporary file is removed and the old file stays. The temporary name ends in `.tmp`: pass the format
    explicitly to a library that would derive it from the file name.
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
    """Replace `folder` by a new one that `write` fills; missing parent directories are created.

    The caller must be the only writer of `folder` (by a lock, or because it owns the folder). On an error the old
    folder stays. The old folder is renamed before it is deleted, because a folder that is deleted in place is visible
    in part. If a process is killed between the two renames, no folder has this name until `mend_folder` restores it.
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
    """Clean up after killed `replace_folder` calls: restore an old folder without a successor, delete the others.

    The caller must hold a lock that every writer of `folder` takes: the temporary folder of a live writer would be
    deleted, too.
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
    """Delete the temporary files and folders of killed processes in `folder` whose final name starts with `prefix`.

    The caller must hold a lock that every writer of such names takes: the temporary files of a live writer would be
    deleted, too.
    """
    for path, match in _temporaries(Path(folder)):
        if match["name"].startswith(prefix):
            _remove(path)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, and fsync every directory that received a new entry."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    """Wait until the content of the file at `path` is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    """Wait until the entries of the directory `path` (names created, renamed, deleted) are on disk."""
    try:
        fsync_file(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise


def fsync_tree(folder: Path) -> None:
    """Wait until every file and directory in `folder`, and the folder itself, is on disk."""
    for path in Path(folder).iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            fsync_tree(path)
        else:
            fsync_file(path)
    fsync_folder(folder)


def seal(folder: Path, **facts: Any) -> None:
    """Write `seal.json`: size and hash of each file in `folder`, and `facts` (JSON values).

    The seal is written after the files are on disk, so a folder with a valid seal is complete.
    """
    folder = Path(folder)
    fsync_tree(folder)
    files = {p.relative_to(folder).as_posix(): [p.stat().st_size, _sha256(p)] for p in _sealed_files(folder)}
    content = {"format": FORMAT, "files": files, "facts": facts}
    replace_text(folder / SEAL, json.dumps({"content": content, "sha256": _content_hash(content)}, indent=1))


def check_seal(folder: Path) -> dict[str, Any]:
    """Check every file that `seal` listed in `folder`, and return the facts that were passed to `seal`.

    SealError names the file that is missing or damaged. Files that were added after sealing are ignored.
    """
    folder = Path(folder)
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
        content = sealed["content"]
        if sealed["sha256"] != _content_hash(content) or content["format"] != FORMAT:
            raise ValueError(f"its own hash is wrong, or its format is not {FORMAT}")
        files: dict[str, list[Any]] = content["files"]
    except FileNotFoundError as error:
        raise SealError(f"{folder} has no {SEAL}: writing the folder was interrupted; use another one") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealError(f"{folder / SEAL} is damaged ({error}): use another folder") from error
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise SealError(f"{path} is damaged: it has {found} bytes, but {SEAL} lists {size}; use another folder")
            if _sha256(path) != digest:
                raise SealError(f"{path} is damaged: its hash is not the one in {SEAL}; use another folder")
        except OSError as error:
            raise SealError(f"{path} is missing or cannot be read ({error}): use another folder") from error
    return content["facts"]


def _temporary(path: Path, kind: str) -> Path:
    """Return a new hidden name in the directory of `path`.

    It is random, because processes on two machines can have the same process id.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _temporaries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Return the temporary files and folders in `folder`, each with the parts of its name."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.glob(".*"))
    return [(path, match) for path, match in found if match]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sealed_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
