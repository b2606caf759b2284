"""Model of a disk for tests: which files exist after a power loss, and with which content.

    disk = Disk(root, monkeypatch)           # the present files below `root` are on disk
    write(root / "file")                     # the code under test
    disk.states                              # possible states after a power loss, before and after each system call
    disk.surely()                            # the state after a power loss now, in the worst case

Two extremes are modelled. In `surely`, only changes that were fsynced are on disk. In `at_most`, every change of a
directory is on disk at once (a journaling file system may do this), but the content of a file only after its fsync. In
both, a file that was changed after its last fsync has the content TORN.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TORN = b"\0torn\0"
State = dict[str, bytes]  # path relative to the root -> content


class Disk:
    """Model of the disk below `root`; it follows the system calls of this process (fsync, rename, unlink, ...)."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        self.calls: list[tuple[str, str]] = []  # name of the system call, path relative to the root
        self.states: list[State] = []
        self._content: dict[int, bytes] = {}  # inode -> content on disk
        self._entries: dict[int, dict[str, int]] = {}  # inode of a directory -> its entries on disk
        for path in [root, *root.rglob("*")]:
            self._keep(path)
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._watched_fsync)
        for name in ("rename", "replace", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        for name in ("unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name), forget=True))

    def surely(self) -> State:
        """Return the files after a power loss if only fsynced directory entries and contents are on disk."""
        return self._walk(self.root.stat().st_ino, "", lambda inode, _: self._entries.get(inode, {}))

    def at_most(self) -> State:
        """Return the files after a power loss if all directory entries are on disk, but only fsynced contents."""
        return self._walk(self.root.stat().st_ino, "", lambda _, path: _entries(self.root / path))

    def now(self) -> State:
        """Return the files as a process reads them now, without a power loss."""
        files = (p for p in self.root.rglob("*") if p.is_file())
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in files}

    def _walk(self, inode: int, path: str, entries_of: Callable[[int, str], dict[str, int]]) -> State:
        found: State = {}
        here = {p.lstat().st_ino: p for p in self.root.rglob("*")}
        for name, child in entries_of(inode, path).items():
            below = f"{path}/{name}" if path else name
            if child in self._entries or (child in here and here[child].is_dir()):
                found |= self._walk(child, below, entries_of)
            else:
                content = self._content.get(child)
                changed = child in here and here[child].read_bytes() != content
                found[below] = TORN if content is None or changed else content
        return found

    def _keep(self, path: Path) -> None:
        if path.is_dir():
            self._entries[path.stat().st_ino] = _entries(path)
        else:
            self._content[path.stat().st_ino] = path.read_bytes()

    def _note(self) -> None:
        self.states += [self.surely(), self.at_most()]

    def _watched_fsync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        self._note()
        self._fsync(handle)
        if path.is_relative_to(self.root):
            self._keep(path)
            self.calls.append(("fsync", path.relative_to(self.root).as_posix()))
        self._note()

    def _watched(self, name: str, call: Callable[..., Any], forget: bool = False) -> Callable[..., Any]:
        def watched(path, *arguments, **options):
            self._note()
            inode = os.stat(path, dir_fd=options.get("dir_fd"), follow_symlinks=False).st_ino if forget else None
            result = call(path, *arguments, **options)
            if inode is not None:  # the inode number may be reused for a new file
                self._content.pop(inode, None)
            target = Path(arguments[0]) if name in ("rename", "replace") else Path(path)
            if target.is_absolute():
                self.calls.append((name, target.relative_to(self.root).as_posix()))
            self._note()
            return result

        return watched


def _entries(folder: Path) -> dict[str, int]:
    return {p.name: p.lstat().st_ino for p in folder.iterdir()}


def visible(state: State) -> State:
    """Return `state` without hidden (temporary) files and lock files."""
    return {
        path: content
        for path, content in state.items()
        if not any(part.startswith(".") for part in path.split("/")) and not path.endswith("lock")
    }


def is_private(folder: Path) -> bool:
    """Return whether only the owner of the folder can read or enter it (mode 0700)."""
    return stat.S_IMODE(folder.stat().st_mode) == 0o700
