"""A study as somebody who only looks on finds it: its folder or its copy, its journal, and whether a driver has it.

    place = open_place("runs/x")          # or s3://bucket/path/x, of which a copy is kept under runs/
    place.refresh()                       # an object store: what has changed there comes here; a folder: nothing
    follower = Follower(place.folder)
    follower.update()                     # follower.log is the study's state

Nothing is written into the study, and a driver is not disturbed.
"""

import fcntl
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

from analysis.results import ResultsError
from trainables.storage import Store
from tune.journal import FOLDER as JOURNAL
from tune.journal import StudyLog, segments
from tune.mirror import DRIVER, FRESH_S, working_folder
from tune.study import lock_of


class Place:
    """Where a study is read: `folder`, which for an object store is a copy of what the page and tables need."""

    def __init__(self, text: str):
        self.text = text
        self._store = self._lock_of = None
        self._seen: dict[str, tuple[int, int]] = {}  # file in the store -> size and time when it was copied
        self.folder = Path(text).expanduser().resolve()
        if "://" in text:
            storage, _, name = text.rstrip("/").rpartition("/")
            work = working_folder(storage)
            self._store, self._lock_of = Store(text), work / name
            self.folder = work.with_name(f"read-{work.name}") / name  # not where a driver works: it may be ahead

    def refresh(self) -> None:
        """Copy what has changed in an object store; OSError where it cannot be reached."""
        if self._store is None:
            return
        for name, stamp in self._files():
            if self._seen.get(name) != stamp:
                beside = self.folder / f"{name}.part"
                self._store.pull(name, beside)
                beside.replace(self.folder / name)
                self._seen[name] = stamp

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The store's tables and journal; the journal first, so that no table is older than it."""
        assert self._store is not None
        for folder in (JOURNAL, ""):
            selector = fs.FileSelector(f"{self._store.path}/{folder}", allow_not_found=True)
            for info in self._store.files.get_file_info(selector):
                name = f"{folder}/{info.base_name}" if folder else info.base_name
                if info.type == fs.FileType.File and name.endswith((".json", ".jsonl", ".csv")):
                    yield name, (info.size, info.mtime_ns)

    def driven(self) -> bool:
        """Whether a driver runs the study at this moment, as far as its lock and its signs of life tell."""
        if self._lock_of is None:
            return is_held(lock_of(self.folder))
        if is_held(lock_of(self._lock_of)):
            return True
        sign = self.folder / DRIVER
        return sign.is_file() and time.time() - json.loads(sign.read_text())["time"] < FRESH_S


def open_place(text: str) -> Place:
    """The study that was named; ResultsError where there is none."""
    try:
        place = Place(text)
        place.refresh()
    except (OSError, ValueError) as error:  # pyarrow's are kinds of both
        raise ResultsError(f"{text} cannot be read: {error}") from error
    if not (place.folder / "study.json").is_file():
        raise ResultsError(f"{text}: no study there; expected a folder with study.json, such as runs/<name>")
    return place


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock file.

    Asked with a shared lock, for microseconds: a driver that starts in them would be refused, and can be started again.
    """
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


class Follower:
    """A study's journal, read on from where the last reading ended; `log` is the state it tells."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = StudyLog()
        self.last: float | None = None  # time of the newest event, in seconds since 1970
        self.began = 0.0  # when the newest driver began, and how many trials had ended by then
        self.ended_before = 0
        self._read: Counter[Path] = Counter()  # bytes

    def update(self) -> None:
        """Take in what was appended. ResultsError names a line that is not JSON."""
        for path in segments(self.folder):
            with path.open("rb") as stream:
                stream.seek(self._read[path])
                whole, end, _ = stream.read().rpartition(b"\n")  # the last line may be half written
            for line in whole.splitlines():
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError) as error:
                    raise ResultsError(f"{path} is damaged: {error} in {line[:80]!r}") from error
            self._read[path] += len(whole) + len(end)

    def _take(self, event: dict[str, Any]) -> None:
        self.last = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "run":
            self.began, self.ended_before = self.last, self.log.n_ended
        self.log.apply(event)
