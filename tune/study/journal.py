"""The journal of a study: every event, one JSON line each, in segments of about 1 MB.

    <study>/journal/000002-0001.jsonl     first segment of the second driver (generation 2), then 000002-0002.jsonl ...

The first line of a segment is its header: format, generation, and `after`, the segment that it follows with the number
of bytes that its driver had read or written of it. What an earlier driver writes behind these bytes, because it was
paused and does not know yet that another took over, does not count. The same rule drops half a line that a kill left.

An event is acknowledged when its line was written, flushed and fsynced. Journals of format 1 (000.jsonl, one segment a
driver, without header) are read as well.
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
SEGMENT_BYTES = 1_000_000  # then the next segment begins: an object store can only replace an entire object
_NAME = re.compile(r"(?:(\d+)-)?(\d+)\.jsonl")


class JournalError(ValueError):
    """A journal with a damaged line, or with an event that cannot be."""


@dataclass(frozen=True, order=True)
class Segment:
    """A file of a journal; segments sort in the order in which they were written."""

    generation: int  # 1, 2, ...: which driver wrote it
    number: int  # 1, 2, ... within the generation; 0 in format 1
    path: Path


def segment_of(path: Path) -> Segment | None:
    """The segment that a file is; None for another file."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    generation, number = match.groups()
    return Segment(int(number) + 1, 0, path) if generation is None else Segment(int(generation), int(number), path)


def segments(study: Path) -> list[Segment]:
    """All segments of a study, oldest first."""
    return sorted(filter(None, map(segment_of, (study / FOLDER).glob("*.jsonl"))))


def counting(study: Path) -> list[tuple[Segment, int]]:
    """The segments that count, oldest first, each with the number of its bytes that do. JournalError names a damaged
    header."""
    found: list[tuple[Segment, int]] = []
    for segment in segments(study):
        header = read_header(segment)
        if header is None and segment.number:
            continue  # its driver was killed before it had written the header
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
    """JournalError where the segment that `segment` follows is missing, or shorter than its driver found it."""
    if after is not None:
        size = next((n for s, n in found if s.path.name == after[0]), None)
        if size is None or size < after[1]:
            there = "is missing" if size is None else f"has {size:,} bytes"
            raise JournalError(
                f"{segment.path} follows {after[1]:,} bytes of {after[0]}, which {there}: a part of the journal was "
                "lost. Put a copy of that file in its place"
            )


def read_header(segment: Segment) -> dict[str, Any] | None:
    """Return the first line of a segment; None in format 1, and where it is incomplete."""
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
            raise ValueError(f"it follows {after}")
        if header["segment"] != FORMAT:
            raise ValueError(f"format {header['segment']}; this version of asc-tune reads format {FORMAT}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise JournalError(f"{segment.path}, line 1 is no header of a segment: {error}") from error
    return header


def parse(segment: Segment, content: bytes, first_line: int = 1) -> Iterator[tuple[int, Event]]:
    """Yield the events in the complete lines of a segment, each with its line number. JournalError names the line."""
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
    """Apply the event of a line; JournalError names a line whose event cannot follow those before it."""
    try:
        apply(event)
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(_damaged(segment, number, error)) from error


def _damaged(segment: Segment, number: int, error: Exception) -> str:
    reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
    return (
        f"{segment.path}, line {number} is damaged: {reason}. Put a copy of this file in its place; deleting the line "
        "does not help, because later lines build on it"
    )


class Reading:
    """Reads the journal of a study from its beginning; `after` is then where the reading ended."""

    def __init__(self, study: Path):
        self.study = study
        self.after: tuple[str, int] | None = None  # name of the last segment, and the bytes of its complete lines
        self.place: tuple[Segment, int] | None = None  # of the event that was yielded last

    def __iter__(self) -> Iterator[Event]:
        for segment, size in counting(self.study):
            with segment.path.open("rb") as stream:
                whole, end, _ = stream.read(size).rpartition(b"\n")
            for number, event in parse(segment, whole):
                self.place = segment, number
                yield event
            self.after = segment.path.name, len(whole) + len(end)

    def apply(self, apply: Callable[[Event], None]) -> None:
        """Apply all events; JournalError names the line of one that cannot follow those before it."""
        for event in self:
            assert self.place is not None
            apply_line(apply, event, *self.place)


def read_events(study: Path) -> Iterator[Event]:
    """All events of a study, in order. JournalError names a line that is no event."""
    return iter(Reading(study))


def read_state(study: Path) -> StudyState:
    """The state that the events of a study make; empty where there are none yet."""
    state = StudyState()
    Reading(study).apply(state.apply)
    return state


def next_generation(study: Path) -> int:
    """The generation of a driver that begins now."""
    return max((segment.generation for segment in segments(study)), default=0) + 1


class Journal:
    """Appends events to segments of its own generation. For the one driver that holds the study.

    `after` is where the reading of the earlier segments ended (`Reading.after`). `check` is called before each write
    and raises where the driver has lost the study.
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
        self._begun: Path | None = None  # segment that this journal has created
        self._patience(lambda: make_folder(self.folder))
        self._patience(self._sync_earlier)
        self._patience(lambda: self._open(after))

    def append(self, events: tuple[Event, ...]) -> None:
        """Write events down and fsync them; returns when they are on disk. Waits for a storage that is away or full.

        StudyLost when another driver took the study over; OSError after the wait, and then no event is written.
        """
        lines = "".join(map(encode, events)).encode()
        self._patience(lambda: self._append(lines))

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def _sync_earlier(self) -> None:
        """Fsync the earlier segments: what a killed driver wrote may be in memory only, and new events build on it."""
        for segment in segments(self.folder.parent):
            fsync_file(segment.path)

    def _open(self, after: tuple[str, int] | None) -> None:
        """Begin the next segment."""
        self._check_owner()
        path = self.folder / f"{self.generation:06d}-{self._number + 1:04d}.jsonl"
        header = (json.dumps({"segment": FORMAT, "generation": self.generation, "after": after}) + "\n").encode()
        if self._begun == path:  # a full disk has left a part of it
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
        """OSError where the lines cannot be written, or the file is not in its place; half a line is taken back."""
        self._check_owner()
        if self._size >= SEGMENT_BYTES:
            self._open((self._path.name, self._size))
        assert self._handle is not None
        opened = os.fstat(self._handle)
        if not os.path.samestat(opened, self._path.stat()):
            raise FileNotFoundError(f"{self._path} is another file than before")
        try:
            if opened.st_size > self._size:  # what a storage that went away kept of half a line
                os.ftruncate(self._handle, self._size)
            _write(self._handle, lines)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)  # a full disk may have taken half a line
            raise
        self._size += len(lines)

    def _check_owner(self) -> None:
        self._check()
        newest = max((s.generation for s in map(segment_of, self.folder.iterdir()) if s), default=0)
        if newest > self.generation:
            raise StudyLost(
                f"{self.folder} was taken over by another driver (generation {newest}; this driver is generation "
                f"{self.generation}); this driver stops and writes nothing more"
            )


def _write(handle: int, content: bytes) -> None:
    """Write all of `content` and fsync it: a disk that is nearly full may take a part of it first."""
    written = 0
    while written < len(content):
        written += os.write(handle, content[written:])
    os.fsync(handle)
