"""Read the journal of a study: all its events as lines of JSON, in files of about 1 MB ("segments").

    for event in read_events(Path("runs/x")): ...
    read_state(Path("runs/x")).counts()               # the state of the study after all these events

Drivers write the journal with tune/study/writer.py.

    <study>/journal/000002-0001.jsonl     first segment of the second driver (generation 2), then 000002-0002.jsonl ...

The first line of a segment is its header with the keys `segment` (the format), `generation` and `after`. `after` is
[name of the preceding segment, number of its valid bytes]: the bytes that the driver had read or written when it
created the new segment. Further bytes of the preceding segment, and segments between the two, are ignored: a partial
line that a killed driver left, or lines of a paused driver that did not know that another driver had taken over.

Journals of format 1 (one segment per driver: 000.jsonl, ..., without a header) can be read, but are not written.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune.study.events import FORMAT, REMEDY, Event, EventError, decode
from tune.study.format1 import migrated
from tune.study.state import StudyState

FOLDER = "journal"
_NAME = re.compile(r"(?:(\d+)-)?(\d+)\.jsonl")


class JournalError(ValueError):
    """Raised if a line of a journal is invalid or contradicts the earlier ones, or if a part of the journal is lost."""


@dataclass(frozen=True, order=True)
class Segment:
    """A file of the journal of a study. When segments are sorted, the oldest one is first."""

    generation: int  # 1, 2, ...: number of the driver that wrote the file
    number: int  # 1, 2, ... within the generation; 0 in format 1
    path: Path


def segment_of(path: Path) -> Segment | None:
    """Return the segment (journal file) at `path`; None if `path` does not have the name of a segment."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    generation, number = match.groups()
    return Segment(int(number) + 1, 0, path) if generation is None else Segment(int(generation), int(number), path)


def segments(study: Path) -> list[Segment]:
    """Return the segments (files) of the journal of the study in the folder `study`, oldest first."""
    return sorted(filter(None, map(segment_of, (study / FOLDER).glob("*.jsonl"))))


def counting(study: Path) -> list[tuple[Segment, int]]:
    """Return (segment, number of valid bytes at its beginning) for each segment that counts, oldest first.

    `study` is the study's folder. `after` in a segment's header names the preceding segment and the number of its bytes
    that count. Its further bytes, and segments between the two, do not count (the top of this file tells why). Raise
    JournalError if a header is invalid, or if the preceding segment is missing or has fewer bytes.
    """
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
    """Raise JournalError if the segment that precedes `segment` is missing or too short.

    `after` comes from the header of `segment`: [name of the preceding segment, number of its valid bytes], or None for
    the first segment. `found` holds (segment, number of its valid bytes) of the earlier segments.
    """
    if after is not None:
        size = next((n for s, n in found if s.path.name == after[0]), None)
        if size is None or size < after[1]:
            problem = "is missing" if size is None else f"has only {size:,} bytes"
            raise JournalError(
                f"{segment.path}: its header expects {after[1]:,} bytes in the preceding file {after[0]}, which "
                f"{problem}. A part of the journal was lost: restore {after[0]} from a copy"
            )


def read_header(segment: Segment) -> dict[str, Any] | None:
    """Return the header of a segment; None if there is none (format 1), or if it is incomplete (its driver was killed).
    Raise JournalError if the header is invalid."""
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
            raise ValueError(f"key 'after' is {after}; expected null or [preceding file, number of its bytes]")
        if header["segment"] != FORMAT:
            raise ValueError(f"key 'segment' (the format) is {header['segment']!r}; this version reads format {FORMAT}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise JournalError(f"{segment.path}, line 1 is not a valid header: {problem}; {REMEDY}") from error
    return header


def parse(segment: Segment, content: bytes, first_line: int = 1) -> Iterator[tuple[int, Event]]:
    """Yield (line number, event) for each event in `content`, which holds complete lines of `segment`, beginning with
    line number `first_line`. Raise JournalError, which names file and line, if a line is invalid."""
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
    """Call `apply` with `event`, which is in line `number` of `segment`. Raise JournalError, which names file and line,
    if the event contradicts the earlier ones."""
    try:
        apply(event)
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(_damaged(segment, number, error)) from error


def _damaged(segment: Segment, number: int, error: Exception) -> str:
    reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
    remedy = "" if isinstance(error, EventError) else f"; {REMEDY}"  # an EventError contains it
    return f"{segment.path}, line {number} is invalid: {reason}{remedy}. Do not delete the line: others depend on it"


class Reading:
    """Iterable over the events in the journal of the study in the folder `study`, oldest first. After an iteration,
    `after` is (name of the last segment, number of bytes of its complete lines); None if there is no segment."""

    def __init__(self, study: Path):
        self.study = study
        self.after: tuple[str, int] | None = None
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
        """Call `apply` with each event of the journal. Raise JournalError, which names file and line, if a line is
        invalid or its event contradicts the earlier ones."""
        for event in self:
            assert self.place is not None
            apply_line(apply, event, *self.place)


def read_events(study: Path) -> Iterator[Event]:
    """Return an iterator over the events of the study in `study`, a folder. It raises JournalError at invalid lines."""
    return iter(Reading(study))


def read_state(study: Path) -> StudyState:
    """Return the state of the study in the folder `study` after all its events; without events, it is empty."""
    state = StudyState()
    Reading(study).apply(state.apply)
    return state


def next_generation(study: Path) -> int:
    """Return the number (generation) of a new driver of the study in the folder `study`: the highest used one + 1."""
    return max((segment.generation for segment in segments(study)), default=0) + 1
