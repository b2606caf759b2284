"""Which driver has a study: a lock in a folder, a lease in an object store.

    with lock(folder): ...                       # one driver of this machine, or of a shared disk with flock
    lease = StoreLease(Store("s3://bucket/x"))
    lease.acquire();  lease.verify();  lease.release()

An object store has no locks, and pyarrow no conditional writes. So each driver claims the study with objects of its
own, <study>/lease/000007-<owner>.json: the number is one above the highest, the owner is drawn at random. The highest
number has the study; of several claims of one number the one that the store received first, and of one moment the one
whose name sorts first. A driver that has claimed a number waits SETTLE_S and looks again, so that a claim of the same
moment is seen, and takes its own away where another is first.

The owner rewrites 000007-<owner>.alive every RENEW_S; a driver that did not do so for FRESH_S counts as dead. A driver
that was paused or cut off asks before each write to the store (`verify`) and stops when it does not have the study any
more. It cannot damage its successor's claim, because it only ever writes objects with its own name. One write that is
under way when the driver is paused can still arrive later and replace a table by an older state of it; the journal is
safe from that (see journal.py, "after").

Ages are measured by the store's clock alone (times of change of objects there).
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data.files import locked
from trainables.outputs.storage import LEASE, Store
from tune.study.manifest import StudyError

FORMAT = 1
FRESH_S = 60.0
RENEW_S = 10.0
SETTLE_S = 2.0


class StudyLost(RuntimeError):
    """Another driver has taken the study over: this one must not write any more."""


@dataclass(frozen=True)
class Claim:
    """The content of a lease object."""

    owner: str  # drawn at random by each driver
    host: str
    pid: int
    process: str  # boot, process namespace and start time: a later process with the same pid differs
    released: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class Found:
    """The newest claim of a study, and its age in seconds by the store's clock."""

    generation: int
    claim: Claim
    age_s: float

    @property
    def alive(self) -> bool:
        """Whether a driver seems to hold the study. A process of this machine is asked directly."""
        if self.claim.released or self.age_s >= FRESH_S:
            return False
        same_machine = self.claim.process.partition("/")[0] == _machine()
        return not same_machine or _process(self.claim.pid) == self.claim.process


def lock_of(folder: Path) -> Path:
    """The file that a driver of the study in `folder` locks."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a study, whose folder need not exist yet; StudyError names the process that holds it."""
    path = lock_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path, wait=False):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
    except BlockingIOError as error:
        owner = path.read_text(errors="replace")[:200] or "another process"
        raise StudyError(f"the study in {folder} is being run by {owner}; wait for it or stop it") from error


class StoreLease:
    """The claim of this driver on the study in `store`."""

    def __init__(self, store: Store):
        self.store, self.generation = store, 0
        self._claim = Claim(secrets.token_hex(8), socket.gethostname(), os.getpid(), _process(os.getpid()))
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: StudyLost | None = None

    def acquire(self, settle_s: float = SETTLE_S) -> None:
        """Take the study; StudyError while another driver has it. Renewed by a thread until `release`."""
        newest = find_claim(self.store)
        if newest and newest.alive:
            raise StudyError(
                f"the study in {self.store.uri} is being run on {newest.claim.host} (process {newest.claim.pid}, last "
                f"sign of life {newest.age_s:.0f} s ago); stop it there, or wait {FRESH_S - newest.age_s:.0f} s if it "
                "is dead"
            )
        self.generation = newest.generation + 1 if newest else 1
        self._write("json")
        time.sleep(settle_s)
        try:
            self.verify()
        except StudyLost as error:
            with suppress(OSError):
                self.store.files.delete_file(f"{self.store.path}/{self._name('json')}")
            raise StudyError(f"{error}; both were started at the same time") from error
        self._write("alive")
        for name in self.store.names(LEASE):
            number = name.partition("-")[0]
            if number.isdecimal() and int(number) < self.generation - 1:
                with suppress(OSError):
                    self.store.files.delete_file(f"{self.store.path}/{LEASE}/{name}")
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """StudyLost when the loss of the study is known already; asks nobody."""
        if self._lost:
            raise self._lost

    def verify(self) -> None:
        """Ask the store; StudyLost when another driver has the study. OSError where the store cannot be reached."""
        self.check()
        first = _first_claim(self.store.stamps(LEASE))
        if first is None:
            self._lost = StudyLost(
                f"the study in {self.store.uri} was deleted; this driver stops and writes nothing more"
            )
            raise self._lost
        if first != self._name("json").rpartition("/")[2]:
            try:
                claim = _read(self.store, first)
            except StudyError:  # of another version
                claim = None
            by = f"process {claim.pid} on {claim.host}" if claim else "another driver"
            self._lost = StudyLost(
                f"the study in {self.store.uri} was taken over by {by}; this driver stops and writes nothing more"
            )
            raise self._lost

    def release(self) -> None:
        """Give the study back, where it was not lost."""
        self._ended.set()
        if self._thread:
            self._thread.join(2 * RENEW_S)  # else it might write after us
        if self._lost is None:
            self.verify()
            self._claim = replace(self._claim, released=True)
            self._write("alive")

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self.verify()
                self._write("alive")
            except StudyLost:
                return
            except OSError:
                continue  # the store is away: `verify` decides when it is back

    def _name(self, ending: str) -> str:
        return f"{LEASE}/{self.generation:06d}-{self._claim.owner}.{ending}"

    def _write(self, ending: str) -> None:
        self.store.write(self._name(ending), json.dumps(asdict(self._claim)).encode())


def find_claim(store: Store, now_ns: int | None = None) -> Found | None:
    """The claim that has the study in `store`; None where there is none. A reader, which may not be allowed to write
    there, gives the time by its own clock (`now_ns`). StudyError for a claim that this version cannot read."""
    stamps = store.stamps(LEASE)
    first = _first_claim(stamps)
    if first is None:
        return None
    alive = first.replace(".json", ".alive")
    claim = _read(store, alive if alive in stamps else first)
    if claim is None:
        return None
    renewed_ns = max(stamps[name][1] for name in (first, alive) if name in stamps)
    now_ns = _store_time_ns(store) if now_ns is None else now_ns
    return Found(int(first.partition("-")[0]), claim, max(0.0, (now_ns - renewed_ns) / 1e9))


def _first_claim(stamps: Mapping[str, tuple[int, int]]) -> str | None:
    """The object of the claim that has the study: of the highest number, the one that the store received first."""
    claims = [name for name in stamps if name.endswith(".json") and name.partition("-")[0].isdecimal()]
    return min(claims, key=lambda name: (-int(name.partition("-")[0]), stamps[name][1], name), default=None)


def _read(store: Store, name: str) -> Claim | None:
    """Return the content of a claim; None where it is just being removed."""
    try:
        content = json.loads(store.read(f"{LEASE}/{name}"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}; this version of asc-tune reads format {FORMAT}")
        return Claim(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"{store.uri}/{LEASE}/{name} is no claim of a driver ({error}): another version may run the study; "
            "stop it, or delete this object if nothing runs"
        ) from error


def _store_time_ns(store: Store) -> int:
    """The time now by the store's clock."""
    probe = f"{LEASE}/clock-{secrets.token_hex(8)}"
    store.write(probe, b"")
    try:
        return store.stamp(probe)[1]
    finally:
        store.files.delete_file(f"{store.path}/{probe}")


def _machine() -> str:
    """Identify this boot of this machine, or container: a pid identifies a process within it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    names = [
        boot.read_text().strip() if boot.exists() else socket.gethostname(),
        str(namespace.readlink()) if namespace.is_symlink() else "",
    ]
    return " ".join(names).replace("/", "-")


def _process(pid: int) -> str:
    """The process with this pid on this machine; another text once it has ended."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "ended"
    return f"{_machine()}/{pid}/{started}"
