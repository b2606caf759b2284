"""Read-only access to a study, which may be running: its folder or a copy of it, its journal, and its driver.

    place = open_place("runs/x")          # or s3://bucket/path/x, of which a copy is kept
    place.refresh()                       # an object store: what has changed there comes here; a folder: nothing
    follower = Follower(place.folder)
    follower.update()                     # follower.state is the state of the study

Nothing is written into the study, and a driver is not disturbed.
"""

import fcntl
import tempfile
import time
from pathlib import Path

from analysis.manifest import ResultsError
from data.files import make_folder
from trainables.outputs.storage import Store
from tune.study.journal import FOLDER as JOURNAL
from tune.study.journal import JournalError, apply_line, counting, parse
from tune.study.lease import find_claim, lock_of
from tune.study.state import StudyState
from tune.study.store import Stamp, is_uri


class Place:
    """Where a study is read: `folder`, which for an object store is a copy of what the page and tables need."""

    def __init__(self, text: str):
        self.text = text
        self._store: Store | None = None
        self._seen: dict[str, Stamp] = {}  # file in the store -> its version when it was copied
        if is_uri(text):
            self._store = Store(text)
            self._copy = tempfile.TemporaryDirectory(prefix="asc-tune-read-")  # this reader's own, gone with it
            self.folder = Path(self._copy.name) / text.rstrip("/").rpartition("/")[2]
        else:
            self.folder = Path(text).expanduser().resolve()

    def refresh(self) -> None:
        """Copy what has changed in an object store; OSError where it cannot be reached."""
        if self._store is None:
            return
        found = self._files()
        for name in [name for name in self._seen if name not in found]:
            (self.folder / name).unlink(missing_ok=True)
            del self._seen[name]
        for name, stamp in found.items():
            if self._seen.get(name) != stamp:
                make_folder((self.folder / name).parent)
                self._store.pull(name, self.folder / name)
                self._seen[name] = stamp

    def _files(self) -> dict[str, Stamp]:
        """The journal and the tables of the store; the journal first, so that no table is older than it."""
        assert self._store is not None
        journal = {f"{JOURNAL}/{name}": stamp for name, stamp in self._store.stamps(JOURNAL).items()}
        return {n: s for n, s in (journal | self._store.stamps("")).items() if n.endswith((".json", ".jsonl", ".csv"))}

    def driven(self) -> bool:
        """Whether a driver runs the study at this moment, as far as its lock or its lease say."""
        if self._store is None:
            return is_held(lock_of(self.folder))
        claim = find_claim(self._store, time.time_ns())
        return claim is not None and claim.alive


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
    """The journal of a study, read on from where the last reading ended; `state` is the state it makes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = StudyState()
        self._read: dict[str, tuple[int, int]] = {}  # segment -> bytes and lines

    def update(self) -> None:
        """Take in what was appended. ResultsError names a line that is no event."""
        try:
            found = counting(self.folder)
            sizes = {segment.path.name: size for segment, size in found}
            if any(sizes.get(name, -1) < size for name, (size, _) in self._read.items()):
                self.state, self._read = StudyState(), {}  # a new driver left out what a lost one had written
            for segment, size in found:
                begin, lines = self._read.get(segment.path.name, (0, 0))
                if size > begin:
                    with segment.path.open("rb") as stream:
                        stream.seek(begin)
                        whole, end, _ = stream.read(size - begin).rpartition(b"\n")  # the last line may be half written
                    for number, event in parse(segment, whole, first_line=lines + 1):
                        apply_line(self.state.apply, event, segment, number)
                    read = whole + end
                    self._read[segment.path.name] = begin + len(read), lines + read.count(b"\n")
        except JournalError as error:
            self.state, self._read = StudyState(), {}  # a part of the segment was applied
            raise ResultsError(str(error)) from error
