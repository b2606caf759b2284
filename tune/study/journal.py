"""The journal of a study: every event as one line of JSON, in segments of about 1 MB.

    <study>/journal/000002-0001.jsonl     first segment of the second driver (generation 2), then 000002-0002.jsonl ...

The first line of a segment is its header: format, generation, and `after`: the segment that it follows and the number
of bytes that its driver had read or written there. Bytes of the earlier segment beyond that number are ignored. They
are either a partial line left by a kill, or were written by an earlier driver that was paused and did not know yet that
another driver had taken over.

An event is acknowledged once its line is written, flushed and fsynced. Journals of format 1 (000.jsonl, one segment per
driver, without header) are also read.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import fsync_file, fsync_folder, make_folder
from tune.study.events import FORMAT, Event, decode, encode, migrated
from tune.study.lease import StudyLost
from tune.study.state import StudyState
from tune.study.waiting import Patience

FOLDER = "journal"
SEGMENT_BYTES = (
    1_000_000  # size at which the next segment starts, because an object store can only replace entire objects
)
_NAME = re.compile(r"(?:(\d+)-)?(\d+)\.jsonl")


class JournalError(ValueError):
    """A journal with a damaged line or an invalid event."""


@dataclass(frozen=True, order=True)
class Segment:
    """A file of the journal; segments sort in the order in which they were written."""

    generation: int  # 1, 2, ...: number of the driver that wrote it
    number: int  # 1, 2, ... within the generation; 0 in format 1
    path: Path


def segment_of(path: Path) -> Segment | None:
    """Return the segment for a path; None if the file is not a segment."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    generation, number = match.groups()
    return Segment(int(number) + 1, 0, path) if generation is None else Segment(int(generation), int(number), path)


def segments(study: Path) -> list[Segment]:
    """Return all segments of a study, oldest first."""
    return sorted(filter(None, map(segment_of, (study / FOLDER).glob("*.jsonl"))))


def counting(study: Path) -> list[tuple[Segment, int]]:
    """Return the valid segments, oldest first, each with the number of its valid bytes. The headers of later segments
    decide what is valid. JournalError names a damaged header."""
    found: list[tuple[Segment, int]] = []
    for segment in segments(study):
        header = read_header(segment)
        if header is None and segment.number:
            continue  # the driver was killed before it wrote the header
        if header is not None:
            after = segment_of(Path(header["after"][0])) if header["after"] else None
            size = header["after"][1] if header["after"] else 0
            last = (after.generation, after.number) if after else (0, 0)
            _check_follows(segment, header["after"], found)
            found = [
                (s, min(n, size) if (s.generation, s.number) == last else n)
                for s, n in found
                if (s.generation, s.number) <= last
            ]
        found.append((segment, segment.path.stat().st_size))
    return found


def _check_follows(segment: Segment, after: list[Any] | None, found: list[tuple[Segment, int]]) -> None:
    """Raise JournalError if the segment that `segment` follows is missing, or shorter than its header records."""
    if after is not None:
        size = next((n for s, n in found if s.path.name == after[0]), None)
        if size is None or size < after[1]:
            problem = "is missing" if size is None else f"has only {size:,} bytes"
            raise JournalError(
                f"the header of {segment.path} says that this segment follows {after[1]:,} bytes of {after[0]}, but "
                f"{after[0]} {problem}: a part of the journal was lost. Restore {after[0]} from a copy"
            )


def read_header(segment: Segment) -> dict[str, Any] | None:
    """Return the header of a segment; None in format 1, or if its line is incomplete."""
    if not segment.number:
        return None
    with segment.path.open("rb") as stream:
        line = stream.readline(10_000)
    if not line.endswith(b"\n"):
        return None
    try:
        header = json.loads(line)
        after = header["after"]
        if after is not None and (segment_of(Path(after[0])) is None or after[1] < 0):
            raise ValueError(f"field 'after' is {after}; expected null or [name of a segment, number of bytes]")
        if header["segment"] != FORMAT:
            raise ValueError(f"field 'segment' is {header['segment']}; this version of asc-tune reads format {FORMAT}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"field {error} is missing" if isinstance(error, KeyError) else error
        raise JournalError(
            f"{segment.path}, line 1 is not a valid header: {problem}. Restore this file from a copy"
        ) from error
    return header


def parse(segment: Segment, content: bytes, first_line: int = 1) -> Iterator[tuple[int, Event]]:
    """Yield the events in `content`, the complete lines of a segment from `first_line` on, each with its line number.
    JournalError names an invalid line."""
    for number, line in enumerate(content.splitlines(), start=first_line):
        if segment.number and number == 1:
            continue  # the header
        try:
            parsed = json.loads(line)
            for event in [decode(parsed)] if segment.number else migrated(parsed):
                yield number, event
        except (ValueError, RecursionError) as error:
            raise JournalError(_damaged(segment, number, error)) from error


def apply_line(apply: Callable[[Event], None], event: Event, segment: Segment, number: int) -> None:
    """Apply the event of a line; JournalError names the line if the event is not valid after the earlier ones."""
    try:
        apply(event)
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(_damaged(segment, number, error)) from error


def _damaged(segment: Segment, number: int, error: Exception) -> str:
    reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
    return (
        f"{segment.path}, line {number} is damaged: {reason}. Restore this file from a copy; deleting the line does "
        "not help, because later lines depend on it"
    )


class Reading:
    """Reader of a study's journal from its beginning; after the iteration, `after` is the position of its end."""

    def __init__(self, study: Path):
        self.study = study
        self.after: tuple[str, int] | None = (
            None  # name of the last segment, and the number of bytes of its complete lines
        )
        self.place: tuple[Segment, int] | None = None  # segment and line number of the last yielded event

    def __iter__(self) -> Iterator[Event]:
        for segment, size in counting(self.study):
            with segment.path.open("rb") as stream:
                complete, end, _ = stream.read(size).rpartition(b"\n")
            for number, event in parse(segment, complete):
                self.place = segment, number
                yield event
            self.after = segment.path.name, len(complete) + len(end)

    def apply(self, apply: Callable[[Event], None]) -> None:
        """Apply all events; JournalError names the line of an event that is not valid after the earlier ones."""
        for event in self:
            assert self.place is not None
            apply_line(apply, event, *self.place)


def read_events(study: Path) -> Iterator[Event]:
    """Return an iterator over all events of a study, in order. JournalError names an invalid line."""
    return iter(Reading(study))


def read_state(study: Path) -> StudyState:
    """Return the state of a study after all events of its journal; the empty state if there are no events."""
    state = StudyState()
    Reading(study).apply(state.apply)
    return state


def next_generation(study: Path) -> int:
    """Return the generation of a driver that starts now: the highest one in the journal plus 1."""
    return max((segment.generation for segment in segments(study)), default=0) + 1


class Journal:
    """Writer of a study's journal: appends events to segments of its own generation. The caller must hold the study
    (tune/study/hold.py).

    `after` is the position where the reading of the earlier segments ended (`Reading.after`). `check` is called before
    each write and raises StudyLost if the driver has lost the study.
    """

    def __init__(
        self,
        study: Path,
        after: tuple[str, int] | None,
        generation: int | None = None,
        patience: Patience | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.folder = study / FOLDER
        self.generation = max(generation or 0, next_generation(study))
        self._patience = patience or Patience(lambda message: None)
        self._check = check
        self._number = 0
        self._handle: int | None = None
        self._path, self._size = self.folder, 0
        self._begun: Path | None = None  # the last segment that this object created
        self._patience(lambda: make_folder(self.folder))
        self._patience(self._sync_earlier)
        self._patience(lambda: self._open(after))

    def append(self, events: tuple[Event, ...]) -> None:
        """Write and fsync events; they are on disk when this returns. Waits while the storage is unavailable or full.

        StudyLost if another driver took over the study. OSError after the longest wait; then no event is written.
        """
        lines = "".join(map(encode, events)).encode()
        self._patience(lambda: self._append(lines))

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def _sync_earlier(self) -> None:
        """Fsync the earlier segments: lines of a killed driver may be in memory only, and new events depend on them."""
        for segment in segments(self.folder.parent):
            fsync_file(segment.path)

    def _open(self, after: tuple[str, int] | None) -> None:
        """Create the next segment and write its header."""
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
        """Append lines and fsync them. OSError if the file was replaced or cannot be written; no partial line stays."""
        self._check_owner()
        if self._size >= SEGMENT_BYTES:
            self._open((self._path.name, self._size))
        assert self._handle is not None
        opened = os.fstat(self._handle)
        if not os.path.samestat(opened, self._path.stat()):
            raise FileNotFoundError(f"{self._path} was replaced by another file; put the file of this driver back")
        try:
            if opened.st_size > self._size:  # a partial line, left when the storage became unavailable
                os.ftruncate(self._handle, self._size)
            _write(self._handle, lines)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)  # a full disk may have stored a partial line
            raise
        self._size += len(lines)

    def _check_owner(self) -> None:
        """Raise StudyLost if this driver has lost the study, or a newer generation has a segment."""
        self._check()
        newest = max((s.generation for s in map(segment_of, self.folder.iterdir()) if s), default=0)
        if newest > self.generation:
            raise StudyLost(
                f"{self.folder} was taken over by another driver (generation {newest}; this driver is generation "
                f"{self.generation}); this driver stops and writes nothing more"
            )


def _write(handle: int, content: bytes) -> None:
    """Write all of `content` and fsync it; a nearly full disk may write a part of it first."""
    written = 0
    while written < len(content):
        written += os.write(handle, content[written:])
    os.fsync(handle)
