"""Read-only access to a study, which may be running, and to the list of studies in a storage.

    place = open_place("runs/x")          # or a URI (s3://bucket/path/x): then files are copied to a temporary folder
    follower = Follower(place.folder)
    follower.update()                     # afterwards, follower.state is the current state of the study
    place.refresh(); follower.update()    # some time later; `refresh` copies what changed in the object store

Nothing is written to the study, and a running driver is not affected.
"""

import fcntl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from analysis.manifest import StudyManifest
from analysis.typed_json import ResultsError
from data.files import make_folder
from trainables.outputs.storage import Store
from tune.study.access import check_links, lock_of
from tune.study.journal import FOLDER as JOURNAL
from tune.study.journal import JournalError, apply_line, counting, parse
from tune.study.lease import find_claim
from tune.study.manifest import NAME, StudyError, parse_manifest
from tune.study.state import StudyState
from tune.study.store import STATE, Stamp, is_uri


class Place:
    """The files of the study at `text`, a path or the URI of a study in an object store, for reading only.

    `folder` is the study's folder. For a URI, it is a temporary copy of manifest, journal and tables, which the first
    call of `refresh` fills.
    """

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
        """If the study is in an object store, copy new and changed files to `folder`, and delete files that the store
        no longer has. Raise OSError if the store cannot be read or `folder` cannot be written."""
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
        """Return {file name: (size in bytes, modification time in ns)} of journal, manifest and tables in the store.

        The journal is listed and copied first. Drivers upload it last, so no table in the copy is older than the copied
        journal.
        """
        assert self._store is not None
        journal = {f"{JOURNAL}/{name}": stamp for name, stamp in self._store.stamps(JOURNAL).items()}
        return {n: s for n, s in (journal | self._store.stamps("")).items() if n.endswith((".json", ".jsonl", ".csv"))}

    def driven(self) -> bool:
        """Return whether a driver is running the study now: whether it holds the study's lock file or lease."""
        if self._store is None:
            return is_held(lock_of(self.folder))
        claim = find_claim(self._store, time.time_ns())
        return claim is not None and claim.alive


def open_place(text: str) -> Place:
    """Return the study at `text`: the path of a study, or its URI in an object store, from which files are copied.

    Raise ResultsError if the study cannot be read, or if there is no study at `text`.
    """
    try:
        place = Place(text)
        place.refresh()
        check_links(place.folder)
    except StudyError as error:
        raise ResultsError(str(error)) from error
    except (OSError, ValueError) as error:  # pyarrow raises subclasses of both
        raise ResultsError(f"{text} cannot be read: {error}; check the path or URI and the credentials") from error
    if not (place.folder / "study.json").is_file():
        raise ResultsError(
            f"{text}: no study there; expected a folder with study.json, such as runs/<name>. Correct the path or URI"
        )
    return place


@dataclass(frozen=True)
class DamagedStudy:
    """A study in a storage whose study.json cannot be read."""

    problem: str  # what is wrong with the file, in one line that names the file
    changed: str  # UTC time at which the file was changed last, in the format of `now`; the study is not newer


def studies_in(
    storage: Path, remote: str | None, name: str | None = None
) -> tuple[dict[str, StudyManifest], dict[str, DamagedStudy]]:
    """Return {name: manifest} of all studies in a storage, and those whose study.json is damaged.

    With `name`, only the study of this name is read. `storage` is the local folder of the studies. If the storage is an
    object store, `remote` is its URI, and the result has the studies in the store, and those in `storage` that were
    never uploaded because their driver was killed.
    """
    files: dict[str, tuple[Callable[[], bytes], str, int]] = {}  # study -> read, path, time of change in ns
    for file in [storage / name / NAME] if name else storage.glob(f"*/{NAME}"):
        if file.is_file() and not (remote and (file.parent / STATE).is_file()):
            files[file.parent.name] = (file.read_bytes, str(file), file.stat().st_mtime_ns)
    if remote:
        store = Store(remote)
        for other in [name] if name else store.names(""):
            if stamp := store.stamps(other).get(NAME):
                files[other] = (partial(store.read, f"{other}/{NAME}"), f"{remote}/{other}/{NAME}", stamp[1])
    manifests, damaged = dict[str, StudyManifest](), dict[str, DamagedStudy]()
    for found, (read, path, changed_ns) in files.items():
        try:
            manifests[found] = parse_manifest(read(), path)
        except StudyError as error:
            changed = datetime.fromtimestamp(changed_ns / 1e9, UTC).isoformat(timespec="seconds")
            damaged[found] = DamagedStudy(str(error), changed)
    return manifests, damaged


def is_held(lock: Path) -> bool:
    """Return whether a process has locked the file `lock`. Return False if the file does not exist.

    The check itself locks the file for some microseconds. A driver that is started in this time ends with the error
    that the study is locked, and must be started again.
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
    """Reads the journal of the study in `folder` incrementally. `state` is the state after all events read so far."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = StudyState()
        self._read: dict[str, tuple[int, int]] = {}  # file name of a segment -> bytes and lines read

    def update(self) -> None:
        """Read the events that were appended since the last update, and apply them to `state`.

        Raise ResultsError, which names file and line, if a line is invalid. The next update then reads the journal from
        its beginning.
        """
        try:
            found = counting(self.folder)
            sizes = {segment.path.name: size for segment, size in found}
            if any(sizes.get(name, -1) < size for name, (size, _) in self._read.items()):
                self.state, self._read = StudyState(), {}  # a new driver discarded events: read all
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
            self.state, self._read = StudyState(), {}  # lines before the invalid one were applied
            raise ResultsError(str(error)) from error
