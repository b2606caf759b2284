"""Read-only access to a study, which may be running.

    place = open_place("runs/x")          # or s3://bucket/path/x, which is copied to a temporary folder
    place.refresh()                       # copies changed files from an object store; does nothing for a folder
    follower = Follower(place.folder)
    follower.update()                     # follower.state is then the present state of the study

Nothing is written into the study, and no driver is disturbed.
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
    """A study to read; `folder` holds its files. For an object store it is a temporary copy of journal and tables."""

    def __init__(self, text: str):
        self.text = text
        self._store: Store | None = None
        self._seen: dict[str, Stamp] = {}  # file in the store -> its version when it was copied
        if is_uri(text):
            self._store = Store(text)
            self._copy = tempfile.TemporaryDirectory(prefix="asc-tune-read-")  # deleted with this object
            self.folder = Path(self._copy.name) / text.rstrip("/").rpartition("/")[2]
        else:
            self.folder = Path(text).expanduser().resolve()

    def refresh(self) -> None:
        """Copy changed files from an object store; OSError if it cannot be reached."""
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
        """Return the journal and table files of the store. The journal is first, so that no table is older than it."""
        assert self._store is not None
        journal = {f"{JOURNAL}/{name}": stamp for name, stamp in self._store.stamps(JOURNAL).items()}
        return {n: s for n, s in (journal | self._store.stamps("")).items() if n.endswith((".json", ".jsonl", ".csv"))}

    def driven(self) -> bool:
        """Return whether a driver runs the study now, according to its lock or its lease."""
        if self._store is None:
            return is_held(lock_of(self.folder))
        claim = find_claim(self._store, time.time_ns())
        return claim is not None and claim.alive


def open_place(text: str) -> Place:
    """Return the study at a path or URI; ResultsError if there is none."""
    try:
        place = Place(text)
        place.refresh()
    except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
        raise ResultsError(f"{text} cannot be read: {error}; check the path or URI and the credentials") from error
    if not (place.folder / "study.json").is_file():
        raise ResultsError(f"{text}: no study there; expected a folder with study.json, such as runs/<name>")
    return place


def is_held(lock: Path) -> bool:
    """Return whether a process holds the lock file.

    The test takes a shared lock for microseconds. A driver that starts in this time finds the study locked and ends; it
    can be started again.
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
    """Incremental reader of a study's journal; `state` is the state after all events read so far."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = StudyState()
        self._read: dict[str, tuple[int, int]] = {}  # segment -> bytes and lines that were read

    def update(self) -> None:
        """Apply the events appended since the last update. ResultsError names an invalid line."""
        try:
            found = counting(self.folder)
            sizes = {segment.path.name: size for segment, size in found}
            if any(sizes.get(name, -1) < size for name, (size, _) in self._read.items()):
                self.state, self._read = StudyState(), {}  # a new driver discarded events of a lost one
            for segment, size in found:
                begin, lines = self._read.get(segment.path.name, (0, 0))
                if size > begin:
                    with segment.path.open("rb") as stream:
                        stream.seek(begin)
                        complete, end, _ = stream.read(size - begin).rpartition(b"\n")  # the last line may be partial
                    for number, event in parse(segment, complete, first_line=lines + 1):
                        apply_line(self.state.apply, event, segment, number)
                    read = complete + end
                    self._read[segment.path.name] = begin + len(read), lines + read.count(b"\n")
        except JournalError as error:
            self.state, self._read = StudyState(), {}  # only a part of the segment was applied
            raise ResultsError(str(error)) from error
