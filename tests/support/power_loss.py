"""A model of the disk for tests: which files would be there, and with which content, after a power loss.

    disk = Disk(root, monkeypatch)           what is below `root` now is on disk
    write(root / "file")                     the code under test
    disk.states                              what a power loss before or after each system call could have left
    disk.surely()                            what a power loss now leaves at least

Two extremes are modelled. `surely`: only what was fsynced is there. `at_most`: every change of a directory is on disk
at once, as a journal may write it, but the content of files only when it was fsynced. Content that was changed after
its last fsync is TORN.
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
    """Watches fsync and every change of a directory below `root` in this process."""

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
        """Names and contents that were fsynced."""
        return self._walk(self.root.stat().st_ino, "", lambda inode, _: self._entries.get(inode, {}))

    def at_most(self) -> State:
        """Names as they are now, contents that were fsynced."""
        return self._walk(self.root.stat().st_ino, "", lambda _, path: _entries(self.root / path))

    def now(self) -> State:
        """What a process reads now."""
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
            if inode is not None:  # its number may be given to a new file
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
    """Without temporary files and locks."""
    return {
        path: content
        for path, content in state.items()
        if not any(part.startswith(".") for part in path.split("/")) and not path.endswith("lock")
    }


def is_private(folder: Path) -> bool:
    """Whether only its owner can enter the folder."""
    return stat.S_IMODE(folder.stat().st_mode) == 0o700
