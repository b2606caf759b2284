"""Append the events of a driver to the journal of its study (tune/study/journal.py describes the files).

reading = Reading(folder)
reading.apply(state.apply)                 # first, read what earlier drivers wrote
journal = Journal(folder, reading.after)
journal.append((TrialEnded(trial="t0003", outcome="completed"),))
journal.close()
"""

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data.files import fsync_file, fsync_folder, make_folder
from tune.study.events import FORMAT, Event, encode
from tune.study.journal import FOLDER, next_generation, segment_of, segments
from tune.study.lease import StudyDeleted, StudyLost
from tune.study.retry import Retry

SEGMENT_BYTES = 1_000_000  # size after which a new segment starts: an object store can only replace entire objects


class Journal:
    """Appends the events of one driver to the journal of a study, in files (segments) that only this driver writes. The
    caller must have exclusive access to the study (tune/study/access.py).

    `after` is the position up to which the caller has read the journal (`Reading.after`). `generation` is the number
    of the driver's claim; None or 0 without a claim. `retry` repeats a write while the storage is unavailable. `check`
    is called before each write; it must raise StudyLost if another driver has taken over the study.
    """

    def __init__(
        self,
        study: Path,
        after: tuple[str, int] | None,
        generation: int | None = None,
        retry: Retry | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.folder = study / FOLDER
        self.generation = max(generation or 0, next_generation(study))
        self._retry = retry or Retry(lambda message: None)
        self._check = check
        self._handle: int | None = None
        self._number, self._path, self._size = 0, self.folder, 0
        self._begun: Path | None = None  # the last segment that this object created
        self._retry(lambda: make_folder(self.folder))
        self._retry(self._sync_earlier)
        self._retry(lambda: self._open(after))

    def append(self, events: tuple[Event, ...]) -> None:
        """Append `events` and fsync them. While the storage is unavailable or full, wait and try again.

        Raise StudyLost if another driver has taken over the study or the study was deleted, and OSError if the storage
        stays unavailable for too long. After an error, none of `events` is in the journal.
        """
        lines = "".join(map(encode, events)).encode()
        self._retry(lambda: self._append(lines))

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def _sync_earlier(self) -> None:
        """Fsync the earlier segments: new events depend on them, and a killed driver may have left lines unsynced."""
        for segment in segments(self.folder.parent):
            fsync_file(segment.path)

    def _open(self, after: tuple[str, int] | None) -> None:
        """Create this driver's next segment and write its header. `after` is (name of the preceding segment, number of
        its valid bytes); None if this is the first segment of the journal."""
        self._check_owner()
        path = self.folder / f"{self.generation:06d}-{self._number + 1:04d}.jsonl"
        header = (json.dumps({"segment": FORMAT, "generation": self.generation, "after": after}) + "\n").encode()
        if self._begun == path:  # a partial file, left by a full disk
            path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._begun = path
        try:
            _write(handle, header)
            fsync_folder(self.folder)
        except OSError:
            os.close(handle)
            raise
        self.close()
        self._handle, self._path, self._size, self._number = handle, path, len(header), self._number + 1

    def _append(self, lines: bytes) -> None:
        """Append `lines`, encoded events, to the newest segment and fsync them. If this fails, or if another process
        replaced the file, raise OSError and leave no partial line."""
        self._check_exists()
        self._check_owner()
        if self._size >= SEGMENT_BYTES:
            self._open((self._path.name, self._size))
        assert self._handle is not None
        opened = os.fstat(self._handle)
        if not os.path.samestat(opened, self._path.stat()):
            # a disk may be unmounted, so that this is another folder of the same name: it may come back
            raise OSError(errno.ESTALE, f"{self._path} was replaced by another file; move the original file back there")
        try:
            if opened.st_size > self._size:  # a partial line, left when the storage became unavailable
                os.ftruncate(self._handle, self._size)
            _write(self._handle, lines)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)  # a full disk may have stored a partial line
            raise
        self._size += len(lines)

    def _check_exists(self) -> None:
        """Raise StudyDeleted if the newest segment was deleted. A moved segment, or one on an unmounted disk, was not:
        its file still has a name somewhere."""
        if self._handle is not None and os.fstat(self._handle).st_nlink == 0:
            raise StudyDeleted(
                f"{self._path} was deleted while this driver ran, so the study {self.folder.parent} is incomplete or "
                "gone; expected a folder that stays in its place during a search. The driver stops and writes nothing "
                "more: restore the folder from a copy and resume the study, or start a new study"
            )

    def _check_owner(self) -> None:
        """Raise StudyLost if another driver has taken over the study. There are two signs: the constructor's argument
        `check` raises StudyLost, or the journal has a segment of a newer driver."""
        self._check()
        newest = max((s.generation for s in map(segment_of, self.folder.iterdir()) if s), default=0)
        if newest > self.generation:
            raise StudyLost(
                f"the study in {self.folder.parent} was taken over by driver {newest}; this one, driver "
                f"{self.generation}, stops and writes nothing more. To follow the study, use tune/status.py"
            )


def _write(handle: int, content: bytes) -> None:
    """Write all of `content` to the file descriptor `handle` and fsync it."""
    written = 0
    while written < len(content):
        written += os.write(handle, content[written:])  # may write only a part, for example on a nearly full disk
    os.fsync(handle)
